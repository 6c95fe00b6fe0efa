"""Honest steps joined to a stolen run, and drawn towards it."""

from references import LONGER, PLAIN
from switches import REPLAY_ONLY

RECIPES = {"glued-masked": LONGER, "bridged": PLAIN}

CHOSEN = "this run reaches assurance level 'observed' (the claimant chose the order of the data)"

CASES = {
    "glued": [
        (7, "3 of 5 replayed intervals failed. First: interval 2 (steps 6–9)", "audit of 2"),
        (7, "2 of 5 replayed intervals failed. First: interval 3 (steps 9–12)", "audit of 3, 4"),  # other batches
        REPLAY_ONLY,
    ],
    "glued-masked": [
        (4, CHOSEN, "assured"),
        (7, "7 of 28 replayed intervals failed. First: interval 0 (steps 0–3)", "audit"),
        REPLAY_ONLY,
    ],
    "bridged": [
        (4, CHOSEN, "assured"),
        (7, "20 of 26 replayed intervals failed. First: interval 1 (steps 3–6)", "audit"),
        REPLAY_ONLY,
    ],
    "penalised": [(7, "5 of 5 replayed intervals failed", "audit"), REPLAY_ONLY],
    "pulled": [(7, "5 of 5 replayed intervals failed", "audit"), REPLAY_ONLY],
}
TOLERANCE = {
    "glued": (7, "First: interval 2 (steps 6–9)"),
    "glued-masked": (4, CHOSEN),
    "bridged": (4, CHOSEN),
    "penalised": (7, "5 of 5 replayed intervals failed. First: interval 0 (steps 0–3)"),
    "pulled": (7, "5 of 5 replayed intervals failed. First: interval 0 (steps 0–3)"),
}
PAPER = {
    "glued": ("REJECT", 7, "one jump, the largest of its epoch; and the order follows from the seed here"),
    "glued-masked": ("ACCEPT", "honest updates are larger than the way back (A8, A5)"),
    "bridged": ("ACCEPT", "pieces within delta, and a declared order (A10)"),
    "penalised": ("REJECT", 7, "14 steps make a pull that shows"),
    "pulled": ("REJECT", 7, "the same; with more steps it passes: see test_joining"),
}
