"""What is expected of the attacks of ``pol.attacks.hiding`` and ``pol.attacks.masks``."""

from pathlib import Path

from switches import HONEST_PROOF, REPLAY_ONLY

PICTURES = f"{Path(__file__).parent / 'recipes' / 'pictures.py'}:Pictures"
RECIPES = {"lossy-hash": PICTURES}

ALL_FAIL = "5 of 5 replayed intervals failed"
OTHER_SAMPLES = "step 0 used samples that are not the committed ones"

CASES = {
    "skipped-batches": [(7, ALL_FAIL, "audit"), REPLAY_ONLY],
    "skipped-intervals": [
        (7, "2 of 5 replayed intervals failed. First: interval 1 (steps 3–6)", "audit of 1"),
        (7, "1 of 5 replayed intervals failed. First: interval 3 (steps 9–12)", "audit of 3"),
        REPLAY_ONLY,
    ],
    "data-addition": [
        (7, "1 of 5 replayed intervals failed. First: interval 2 (steps 6–9)", "audit of 2"),
        REPLAY_ONLY,
    ],
    "committed-poison": ["the samples are committed, and every step was taken on them"],
    "lossy-hash": [(7, OTHER_SAMPLES, "samples"), HONEST_PROOF],
    "chosen-masks": [(7, ALL_FAIL, "audit"), REPLAY_ONLY],
}

TOLERANCE = {
    "skipped-batches": (7, ALL_FAIL),
    "skipped-intervals": (7, "2 of 5 replayed intervals failed"),
    "data-addition": None,
    "committed-poison": None,
    "lossy-hash": (7, OTHER_SAMPLES),
    "chosen-masks": (7, ALL_FAIL),
}

PAPER = {
    "skipped-batches": ("REJECT", 7, "half of the moves are missing, and moves of three steps are beyond delta"),
    "skipped-intervals": ("REJECT", 7, "an epoch of two intervals is replayed whole; with more it passes (A13)"),
    "data-addition": ("ACCEPT", "hidden steps move the weights by less than delta (A14)"),
    "committed-poison": ("ACCEPT", "every step was taken"),
    "lossy-hash": ("ACCEPT", "the dataset's leaves; its own hash is of what numpy prints (I8)"),
    "chosen-masks": ("ACCEPT", "other masks move the weights by less than delta"),
}
