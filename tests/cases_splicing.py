"""What is expected of the attacks of ``pol.attacks.splicing``."""

from switches import REPLAY_ONLY

JUMP = "1 of 5 replayed intervals failed. First: interval 3 (steps 9–12)"

CASES = {
    "splice": [(7, JUMP, "audit of 3"), REPLAY_ONLY],
    "splice-momentum": [(7, JUMP, "audit of 3"), REPLAY_ONLY],
    "splice-hidden": [(7, JUMP, "audit of 3"), REPLAY_ONLY],
}
TOLERANCE = dict.fromkeys(CASES, (7, JUMP))
PAPER = {
    "splice": ("REJECT", 7, "a jump, among the largest of its epoch"),
    "splice-momentum": ("ACCEPT", "optimizer state (I2)"),
    "splice-hidden": ("REJECT", 7, "a jump, among the largest of its epoch"),
}
