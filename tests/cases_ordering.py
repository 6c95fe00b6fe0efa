"""What is expected of the attacks of ``pol.attacks.ordering``, ``picking`` and ``grinding``."""

from switches import REPLAY_ONLY, TRUE_TO_ORDER

CHOSEN = "level 'observed' (the claimant chose the order of the data)"
SECOND = "1 of 5 replayed intervals failed. First: interval 2 (steps 6–9)"

CASES = {
    "order-backdoor": [(4, CHOSEN, "assured"), TRUE_TO_ORDER],
    "order-slowdown": [(4, CHOSEN, "assured"), TRUE_TO_ORDER],
    "ground-start": ["an honest run under one of many secrets"],
    "lucky-run": ["an honest run, the best of some"],
    "backdated": ["dates are claims"],
    "ground-challenge": [(7, SECOND, "audit of 2"), REPLAY_ONLY],
    "ground-fiat-shamir": [(7, SECOND, "audit of 2"), REPLAY_ONLY],
}

TOLERANCE = {
    "order-backdoor": (4, "your policy demands 'self-seeded'"),
    "order-slowdown": (4, "your policy demands 'self-seeded'"),
    "ground-start": None,
    "lucky-run": None,
    "backdated": None,
    "ground-challenge": (7, SECOND),
    "ground-fiat-shamir": (7, SECOND),
}

PAPER = {
    "order-backdoor": ("ACCEPT", "the declared order"),
    "order-slowdown": ("ACCEPT", "the same"),
    "ground-start": ("ACCEPT", "every step was taken"),
    "lucky-run": ("ACCEPT", "the same"),
    "backdated": ("ACCEPT", "the same"),
    "ground-challenge": ("REJECT", 7, "a lie as large as a usual move, where the largest are replayed and N is five"),
    "ground-fiat-shamir": ("REJECT", 7, "the same"),
}
