"""The red team: forgeries that a prover or a thief could make without the work, each to be rejected.

One file per family, and ``registry`` names them all. A forger here is strong: it has every file of its target and
a signing key, and makes everything that is cheap to make (signatures, hashes, batches, rates) agree with its lie.
"""
