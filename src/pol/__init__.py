"""Proof-of-learning: evidence, which anyone can check, that a model came from the training its owner claims."""
