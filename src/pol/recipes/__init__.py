"""Recipes that ship with the package: real trainings, short enough to copy and change."""
