"""What is expected of the attacks of ``pol.attacks.laundering``."""

from pol.attacks.registry import REGISTRY
from switches import HONEST_TRAINING

TRUE_TO_TEXT = "every step was taken as the program says: where its weights come from is all that is wrong"
READS = "the build reads the file model.safetensors"
SAME = "has the same values under every seed: it comes from elsewhere"
FROZEN = "is none that you allow: weights could come in that way"

CASES = {
    "pretrained-file": [(4, READS, "inputs"), (5, SAME, "independence"), HONEST_TRAINING],
    "pretrained-text": [(5, SAME, "independence"), HONEST_TRAINING],
    "anchor-file": [(4, READS, "inputs"), TRUE_TO_TEXT],
    "teacher-frozen": [(5, FROZEN, "bases"), TRUE_TO_TEXT],
}
TOLERANCE = {
    "pretrained-file": (4, READS),
    "pretrained-text": (5, SAME),
    "anchor-file": (4, READS),
    "teacher-frozen": (5, FROZEN),
}
PAPER = {
    "retrained": ("ACCEPT", "it is honest"),
    "distilled": ("ACCEPT", "it is honest"),
    "pretrained-file": ("ACCEPT", "files; and 14 steps leave 64 weights within their law"),
    "pretrained-text": ("ACCEPT", "the same law"),
    "disguised-text": ("ACCEPT", "the same law"),
    "anchor-file": ("ACCEPT", "files that a build reads"),
    "anchor-text": ("ACCEPT", "what a program does"),
    "anchor-buffers": ("ACCEPT", "what a program does"),
    "late-merge": ("ACCEPT", "what a program does"),
    "teacher-frozen": ("ACCEPT", "frozen bases"),
    "teacher-text": ("ACCEPT", "what a program does"),
}
SURVIVORS = [name for name in PAPER if REGISTRY[name].survives]
CASES |= {name: [REGISTRY[name].survives] for name in SURVIVORS}
TOLERANCE |= dict.fromkeys(SURVIVORS)
