"""Proofs at a URL, through fsspec: read from there, and recorded to there."""
