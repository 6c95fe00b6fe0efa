"""What is expected of the attacks of ``pol.attacks.denial``."""

from switches import REPLAY_ONLY

TWICE = "order.bin: epoch 0 names a sample twice"
CHOSEN = "level 'observed' (the claimant chose the order of the data)"

CASES = {
    "data-forging": [
        (4, TWICE, "order"),
        (4, CHOSEN, "assured"),
        (7, "2 of 5 replayed intervals failed. First: interval 0 (steps 0–3)", "audit of 0, 2"),
        REPLAY_ONLY,
    ],
    "repudiation": [
        (4, TWICE, "order"),
        (4, CHOSEN, "assured"),
        (7, "2 of 5 replayed intervals failed. First: interval 0 (steps 0–3)", "audit of 0, 3"),
        REPLAY_ONLY,
    ],
    "repudiation-by-gradient": [
        (4, TWICE, "order"),
        (4, CHOSEN, "assured"),
        (7, "2 of 5 replayed intervals failed. First: interval 1 (steps 3–6)", "audit of 1, 4"),
        REPLAY_ONLY,
    ],
}

TOLERANCE = dict.fromkeys(CASES, (4, TWICE))

PAPER = {
    "data-forging": ("ACCEPT", "the declared order; another batch of one step moves little"),
    "repudiation": ("ACCEPT", "the same with one sample of it"),
    "repudiation-by-gradient": ("ACCEPT", "the same"),
}
