"""Imported dynamically, so that no digest would cover it."""
