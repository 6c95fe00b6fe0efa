"""The plain training with all data in every step: without noise, the weights go straight on at a low rate."""

from plain import Plain


class Whole(Plain):
    batch_size = 28
