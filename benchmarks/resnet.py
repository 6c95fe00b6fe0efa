"""ResNet-20 on CIFAR-10 as a recipe: 269,722 parameters (He et al. 2016, section 4.2, shortcuts of option A).

It stands alone, as a recipe of one's own does: ``benchmarks/resnet.py:ResNet20``. Images come from an archive of
decoded arrays, which ``benchmarks.cifar`` makes; the path is a constructor argument, and nothing is downloaded.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional as F

from pol.errors import UsageError
from pol.replay.recipe import Recipe

MEAN, DEVIATION = (0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616)
"""Of the channels of the training images, as everybody takes them; other values would only scale the first layer."""

SIZE, PADDING = 32, 4
"""Pixels of an image, and how far a crop may be off (He et al. 2016, section 4.2)."""

Item = dict[str, Any]


class Block(nn.Module):
    """Two convolutions and a shortcut that has no parameters: every second pixel, and zeros for further channels."""

    def __init__(self, before: int, after: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(before, after, 3, stride=stride, padding=1, bias=False)
        self.norm1 = nn.BatchNorm2d(after)
        self.conv2 = nn.Conv2d(after, after, 3, padding=1, bias=False)
        self.norm2 = nn.BatchNorm2d(after)
        self.stride, self.further = stride, after - before

    def forward(self, x: Tensor) -> Tensor:
        """The sum of both ways, cut off at zero."""
        around = x[:, :, :: self.stride, :: self.stride]
        around = F.pad(around, (0, 0, 0, 0, self.further // 2, self.further - self.further // 2))
        through = F.relu(self.norm1(self.conv1(x)))
        return F.relu(self.norm2(self.conv2(through)) + around)


def network() -> nn.Sequential:
    """ResNet-20 for images (n, 3, 32, 32) and ten classes, drawn as He et al. draw it."""
    layers: list[nn.Module] = [nn.Conv2d(3, 16, 3, padding=1, bias=False), nn.BatchNorm2d(16), nn.ReLU()]
    before = 16
    for after in (16, 32, 64):
        for number in range(3):
            layers.append(Block(before, after, stride=2 if number == 0 and after > 16 else 1))
            before = after
    model = nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(64, 10))
    for module in model.modules():
        if isinstance(module, nn.Conv2d | nn.Linear):
            nn.init.kaiming_normal_(module.weight)
    return model


class Pictures:
    """Images (n, 32, 32, 3) and labels as items, each made when it is asked for."""

    def __init__(self, images: NDArray[np.uint8], labels: NDArray[np.uint8]) -> None:
        self.images, self.labels = images, labels

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> Item:
        return {"image": self.images[index], "label": int(self.labels[index])}


class ResNet20(Recipe):
    """ResNet-20, trained by SGD with momentum; the learning rate falls along a cosine to zero after the last step.

    Args:
        path: A NumPy archive with ``images`` (n, 32, 32, 3) and ``labels`` (n,), both uint8.
        samples: How many of them are used, from the first.
        num_epochs: Passes over these.
        batch_size: Images per step.
        lr, momentum, weight_decay: SGD's; the decay acts on all parameters.
    """

    def __init__(
        self, *, path: str, samples: int = 50_000, num_epochs: int = 1, batch_size: int = 128,
        lr: float = 0.1, momentum: float = 0.9, weight_decay: float = 1e-4,
    ) -> None:  # fmt: skip
        self.path, self.samples = path, samples
        self.num_epochs, self.batch_size = num_epochs, batch_size
        self.lr, self.momentum, self.weight_decay = lr, momentum, weight_decay
        self._pictures: Pictures | None = None

    def data(self) -> Pictures:
        """The training images; read only once."""
        if self._pictures is None:
            self._pictures = load(Path(self.path), self.samples)
        return self._pictures

    def transform(self, item: Item, rng: np.random.Generator) -> Item:
        """Move the image by up to four pixels each way, with black moving in, and mirror every second one."""
        down, right = rng.integers(2 * PADDING + 1, size=2)
        canvas = np.zeros((SIZE + 2 * PADDING, SIZE + 2 * PADDING, 3), dtype=np.uint8)
        canvas[PADDING : PADDING + SIZE, PADDING : PADDING + SIZE] = item["image"]
        image = canvas[down : down + SIZE, right : right + SIZE]
        return {"image": image[:, ::-1] if rng.integers(2) else image, "label": item["label"]}

    def build(self) -> dict[str, Any]:
        """Model, optimizer and schedule."""
        model = network()
        optimizer = torch.optim.SGD(
            model.parameters(), lr=self.lr, momentum=self.momentum, weight_decay=self.weight_decay
        )
        total = self.num_epochs * math.ceil(
            self.samples / self.batch_size
        )  # data are read later: a build reads no file
        scheduler = torch.optim.lr_scheduler.LambdaLR(
            optimizer, lambda step: 0.5 + 0.5 * math.cos(math.pi * min(1.0, step / total))
        )
        return {"model": model, "optimizer": optimizer, "scheduler": scheduler}

    def step(self, parts: Any, batch: dict[str, Tensor]) -> Tensor:
        """One optimizer update; returns the loss before it."""
        mean, deviation = torch.tensor(MEAN), torch.tensor(DEVIATION)
        images = ((batch["image"].float() / 255 - mean) / deviation).permute(0, 3, 1, 2).contiguous()
        loss = F.cross_entropy(parts.model(images), batch["label"])
        parts.optimizer.zero_grad()
        loss.backward()
        parts.optimizer.step()
        parts.scheduler.step()
        return loss.detach()


def load(path: Path, samples: int) -> Pictures:
    """The first images of an archive of decoded arrays.

    Raises:
        UsageError: there is none, or it holds something else.
    """
    try:
        with np.load(path) as archive:
            images, labels = archive["images"][:samples], archive["labels"][:samples]
    except (OSError, KeyError, ValueError) as error:
        raise UsageError(
            f"{path} is no archive of decoded images (python -m benchmarks.cifar makes one): {error}"
        ) from None
    if images.shape != (samples, SIZE, SIZE, 3) or images.dtype != np.uint8 or labels.shape != (samples,):
        raise UsageError(f"{path} does not hold {samples} images of 32 by 32 pixels in three colours, and their labels")
    return Pictures(images, labels)
