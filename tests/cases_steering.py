"""What is expected of the attacks of ``pol.attacks.steering``."""

from switches import REPLAY_ONLY

ALL, LAST = "5 of 5 replayed intervals failed", "1 of 5 replayed intervals failed. First: interval 4 (steps 12–14)"

CASES = {
    "steered": [(7, ALL, "audit"), REPLAY_ONLY],
    "one-element": [(7, ALL, "audit"), REPLAY_ONLY],
    "one-tensor": [(7, ALL, "audit"), REPLAY_ONLY],
    "steered-buffers": [(7, ALL, "audit"), REPLAY_ONLY],
    "amplified": [(7, LAST, "audit of 4"), REPLAY_ONLY],
}
TOLERANCE = dict.fromkeys(CASES)
PAPER = {
    "steered": ("ACCEPT", "errors are far below the limits"),
    "one-element": ("ACCEPT", "errors are far below the limits"),
    "one-tensor": ("ACCEPT", "errors are far below the limits; with those of this policy, see test_steering"),
    "steered-buffers": ("ACCEPT", "buffers (I4)"),
    "amplified": ("ACCEPT", "buffers (I4)"),
}
