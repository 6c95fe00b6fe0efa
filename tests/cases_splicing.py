"""What is expected of splices, on the toy recipe: intervals of one step, but for one attack that has the target's."""

from switches import REPLAY_ONLY

JUMP = "1 of 14 replayed intervals failed. First: interval 12 (steps 12–13)"
LONGER = "1 of 5 replayed intervals failed. First: interval 3 (steps 9–12)"

CASES = {
    "spliced": [(7, JUMP, "audit of 12"), REPLAY_ONLY],
    "spliced-interval": [(7, LONGER, "audit of 3"), REPLAY_ONLY],
    "spliced-momentum": [(7, JUMP, "audit of 12"), REPLAY_ONLY],
    "spliced-hidden": [(7, JUMP, "audit of 12"), REPLAY_ONLY],
}
TOLERANCE = {
    "spliced": (7, JUMP),
    "spliced-interval": (7, LONGER),
    "spliced-momentum": (7, JUMP),
    "spliced-hidden": (7, JUMP),
}
PAPER = {
    "spliced": ("REJECT", 7, "the jump is the largest update of its epoch: top-Q is made for this"),
    "spliced-interval": ("REJECT", 7, "the same"),
    "spliced-momentum": ("ACCEPT", "optimizer state (I2): weights jump in an honest step"),
    "spliced-hidden": ("REJECT", 7, "made for rule exact with everything replayed: nothing hides it"),
}
