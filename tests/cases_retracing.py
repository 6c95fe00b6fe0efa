"""What is expected of the attacks of ``pol.attacks.retracing``."""

from switches import REPLAY_ONLY

NOT_DERIVED = "level 'observed' (the first weights come from elsewhere), your policy demands 'self-seeded'"
NOT_DRAWN = "the first state does not follow from the seed"
ALL = "14 of 14 replayed intervals failed"

CASES = {
    "retraced": [(5, NOT_DRAWN, "origin"), (7, ALL, "audit"), REPLAY_ONLY],
    "retraced-observed": [
        (4, NOT_DERIVED, "assured"),
        (5, "parameter/model.1.bias is not what your recipe builds under every seed", "origin"),
        (7, ALL, "audit"),
        REPLAY_ONLY,
    ],
}
TOLERANCE = {"retraced": (5, NOT_DRAWN), "retraced-observed": (4, NOT_DERIVED)}
PAPER = {
    "retraced": ("REJECT", 5, "momenta that grow backwards carry the start far from any draw"),
    "retraced-observed": ("REJECT", 5, "the same"),
}
