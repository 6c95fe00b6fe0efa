"""What is expected of steps that were taken backwards, on the toy recipe."""

from switches import REPLAY_ONLY

OBSERVED = "level 'observed' (the first weights come from elsewhere), your policy demands 'self-seeded'"
DERIVED = "the first state does not follow from the seed"

CASES = {
    "retraced": [
        (4, OBSERVED, "assured"),
        (5, "parameter/model.1.bias is not what your recipe builds under every seed", "origin"),
        (7, "5 of 5 replayed intervals failed", "audit"),
        REPLAY_ONLY,
    ],
    "retraced-derived": [
        (5, DERIVED, "origin"),
        (7, "5 of 5 replayed intervals failed", "audit"),
        REPLAY_ONLY,
    ],
}
TOLERANCE = {"retraced": (4, OBSERVED), "retraced-derived": (5, DERIVED)}
PAPER = {
    "retraced": (
        "REJECT",
        7,
        "the first interval: its state has no momentum. On so small a model the start passes its test",
    ),
    "retraced-derived": ("REJECT", 7, "the same"),
}
