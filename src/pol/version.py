"""Versions."""

FORMAT = "pol/v1"
"""The proof format. Anything else does not parse."""

__version__ = "0.1.0"
