"""The command line: parse, one call, render, exit."""

from pol.cli.app import main as main
