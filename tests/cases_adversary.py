"""What is expected of the adaptive forger on the toy recipe: fourteen steps, of which it can pay for eight."""

from switches import REPLAY_ONLY

CASES = {
    "adaptive": [
        (7, "3 of 5 replayed intervals failed. First: interval 2 (steps 6–9)", "audit of 2, 3, 4"),
        REPLAY_ONLY,
    ],
}
TOLERANCE = {"adaptive": (7, "3 of 5 replayed intervals failed. First: interval 2 (steps 6–9)")}
PAPER = {"adaptive": ("REJECT", 7, "made for rule exact, it jumps; made for this, it passes: test_adversary")}
