"""A small convolutional network on the handwritten digits that scikit-learn ships: seconds on one core.

It uses what most trainings use (batch normalisation, dropout, augmentation, momentum, weight decay, a
schedule) and is meant to be copied: keep the shape of the class, and put your data, model and step in.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import importlib.util
import math
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from pol.errors import IntegrityError, UsageError
from pol.replay.recipe import Recipe

DATA_SHA256 = "f6d9e39f37dc45d327f6db33428ee58970ccceabb2535a5c179de35886b70443"
"""SHA-256 of the images (little-endian float64, row-major) followed by the labels (little-endian int64)."""

NUM_TRAIN = 1500
"""The first 1500 images are for training and the last 297 for testing, in the order of the data set: unmixed,
because neighbours tend to be in the same hand, and a mixed split would flatter the model."""

Item = dict[str, Any]


@lru_cache(maxsize=1)
def load_digits() -> tuple[tuple[Item, ...], tuple[Item, ...]]:
    """Training and test items, each ``{"image": (8, 8) uint8 of 0..16, "label": int}``.

    Cached, because ``data()`` is called in every epoch.

    Raises:
        UsageError: scikit-learn is not installed.
        IntegrityError: The installed scikit-learn ships other data.
    """
    spec = importlib.util.find_spec("sklearn")
    if spec is None or spec.origin is None:
        raise UsageError("the digits recipe reads its data from scikit-learn: pip install 'proof-of-learning[demo]'")
    # Only the file is needed: importing scikit-learn takes a second in every process.
    rows = np.loadtxt(Path(spec.origin).parent / "datasets" / "data" / "digits.csv.gz", delimiter=",")
    images = np.ascontiguousarray(rows[:, :-1].reshape(-1, 8, 8), dtype="<f8")
    labels = np.ascontiguousarray(rows[:, -1], dtype="<i8")
    found = hashlib.sha256(images.tobytes() + labels.tobytes()).hexdigest()
    if found != DATA_SHA256:
        raise IntegrityError(
            f"scikit-learn {importlib.metadata.version('scikit-learn')} ships other digits than this recipe was "
            f"written for: sha256 {found}, expected {DATA_SHA256}; install another version of scikit-learn"
        )
    pixels = images.astype(np.uint8)  # exact: the values are whole numbers
    items = tuple({"image": image, "label": label} for image, label in zip(pixels, labels.tolist(), strict=True))
    return items[:NUM_TRAIN], items[NUM_TRAIN:]


def to_input(images: Tensor, model: nn.Module) -> Tensor:
    """Images (n, 8, 8) of 0..16 as the model takes them: (n, 1, 8, 8) of 0..1, on the model's device."""
    device = next(model.parameters()).device
    return images.to(device).unsqueeze(1).float() / 16


class DigitsCNN(Recipe):
    """Two convolutions with batch normalisation, pooling, dropout and a linear layer, trained by SGD.

    The learning rate rises linearly in the first ``warmup`` of the steps, from above zero, then falls along a
    cosine to zero after the last step.

    Args:
        num_epochs: Passes over the 1500 training images.
        batch_size: Images per step.
        lr: Highest learning rate.
        momentum: Momentum of SGD (Nesterov's).
        weight_decay: L2 penalty on all parameters.
        warmup: Fraction of all steps in which the learning rate rises.
        width: Channels of the first convolution; the second has twice as many.
        dropout: Probability of dropping a feature before the linear layer.
    """

    def __init__(
        self,
        *,
        num_epochs: int = 12,
        batch_size: int = 50,
        lr: float = 0.1,
        momentum: float = 0.9,
        weight_decay: float = 5e-4,
        warmup: float = 0.1,
        width: int = 16,
        dropout: float = 0.25,
    ) -> None:
        self.num_epochs = num_epochs
        self.batch_size = batch_size
        self.lr = lr
        self.momentum = momentum
        self.weight_decay = weight_decay
        self.warmup = warmup
        self.width = width
        self.dropout = dropout

    def data(self) -> Sequence[Item]:
        """The training items; anything with a length and ``[i]`` will do, if it is the same every time."""
        return load_digits()[0]

    def transform(self, item: Item, rng: np.random.Generator) -> Item:
        """Shift the image by up to one pixel each way, with zeros moving in."""
        # All randomness comes from rng, and the item stays as it is: it will be asked for again.
        down, right = divmod(int(rng.integers(9)), 3)
        canvas = np.zeros((10, 10), dtype=np.uint8)
        canvas[down : down + 8, right : right + 8] = item["image"]
        return {"image": canvas[1:9, 1:9], "label": item["label"]}

    def build(self) -> dict[str, Any]:
        """Model, optimizer and schedule; the weights come from torch's global generator, on the CPU."""
        width = self.width
        model = nn.Sequential(
            nn.Conv2d(1, width, 3, padding=1, bias=False),
            nn.BatchNorm2d(width),
            nn.ReLU(),
            nn.Conv2d(width, 2 * width, 3, padding=1, bias=False),
            nn.BatchNorm2d(2 * width),
            nn.ReLU(),
            nn.MaxPool2d(2),
            nn.Flatten(),
            nn.Dropout(self.dropout),
            nn.Linear(2 * width * 4 * 4, 10),
        )
        optimizer = torch.optim.SGD(
            model.parameters(),
            lr=self.lr,
            momentum=self.momentum,
            weight_decay=self.weight_decay,
            nesterov=self.momentum > 0,  # torch refuses Nesterov's without momentum
        )
        total = self.num_epochs * math.ceil(NUM_TRAIN / self.batch_size)
        rising = max(1, round(self.warmup * total))

        def factor(step: int) -> float:
            if step < rising:
                return (step + 1) / rising
            return 0.5 + 0.5 * math.cos(math.pi * min(1.0, (step - rising) / max(1, total - rising)))

        scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, factor)
        return {"model": model, "optimizer": optimizer, "scheduler": scheduler}

    def step(self, parts: Any, batch: dict[str, Tensor]) -> Tensor:
        """One optimizer update; returns the loss before it."""
        logits = parts.model(to_input(batch["image"], parts.model))
        loss = F.cross_entropy(logits, batch["label"].to(logits.device))
        parts.optimizer.zero_grad()
        loss.backward()
        parts.optimizer.step()
        parts.scheduler.step()
        return loss.detach()

    def accuracy(self, model: nn.Module) -> float:
        """Fraction of the 297 test images that ``model`` labels rightly, in evaluation mode."""
        test = load_digits()[1]
        images = torch.from_numpy(np.stack([item["image"] for item in test]))
        labels = torch.tensor([item["label"] for item in test])
        was_training = model.training
        model.eval()
        try:
            with torch.inference_mode():
                predicted = model(to_input(images, model)).argmax(dim=1).cpu()
        finally:
            model.train(was_training)
        return int((predicted == labels).sum()) / len(test)
