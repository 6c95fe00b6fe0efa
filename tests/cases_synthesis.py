"""What is expected of the attacks of ``pol.attacks.synthesis``: tables for ``cases.collected``."""

from references import PLAIN
from switches import REPLAY_ONLY

ALONG_THE_LAST = (5, "the first values stand in the order of the last ones", "origin")
NOT_DERIVED = (
    4,
    "level 'observed' (the first weights come from elsewhere), your policy demands 'self-seeded'",
    "assured",
)

CASES = {
    name: [NOT_DERIVED, ALONG_THE_LAST, (7, "11 of 11 replayed intervals failed", "audit"), REPLAY_ONLY]
    for name in ("synthesised-steps", "suppressed-steps", "suppressed-intervals")
}
TOLERANCE = dict.fromkeys(CASES, NOT_DERIVED[:2])
PAPER = {
    "synthesised-steps": ("ACCEPT", "a move below delta, whatever the samples do: they do not go along it (A1)"),
    "suppressed-steps": ("ACCEPT", "a move below delta, and samples that move nothing (A2)"),
    "suppressed-intervals": ("ACCEPT", "the same (A3)"),
}
RECIPES = dict.fromkeys(CASES, PLAIN)
