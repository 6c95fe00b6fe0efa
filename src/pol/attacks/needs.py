"""What an attack raises where there is nothing for it to attack."""

from __future__ import annotations

from pol.errors import UsageError


class DoesNotApply(UsageError):
    """A target lacks what an attack needs; the text says what. Any other error is a fault of the attack."""
