"""The attacks of Fang et al.: infinitesimal updates, and blindfold top-Q."""

from references import LONGER, PLAIN
from switches import REPLAY_ONLY

RECIPES = {"infinitesimal": PLAIN, "infinitesimal-matched": PLAIN, "blindfold": LONGER}

NOT_DERIVED = "this run reaches assurance level 'observed' (the first weights come from elsewhere)"

CASES = {
    "infinitesimal": [(7, "21 of 21 replayed intervals failed", "audit"), REPLAY_ONLY],
    "infinitesimal-matched": [
        (4, NOT_DERIVED, "assured"),
        (5, "the first values stand in the order of the last ones", "origin"),
        (7, "7 of 7 replayed intervals failed", "audit"),
        REPLAY_ONLY,
    ],
    "blindfold": [(7, "42 of 42 replayed intervals failed", "audit"), REPLAY_ONLY],
}
TOLERANCE = {
    "infinitesimal": (4, "the move per learning rate"),
    "infinitesimal-matched": (4, NOT_DERIVED),
    "blindfold": (4, "where 0.1 is declared, and nothing that may change it"),
}
PAPER = {
    "infinitesimal": ("ACCEPT", "a rate of about 0 explains that nothing moves, up to delta (A4)"),
    "infinitesimal-matched": ("ACCEPT", "the same; and draws in another order fit their law (A6)"),
    "blindfold": ("ACCEPT", "the largest updates are honest (A5)"),
}
