"""The shipped recipes: pinned data, pure transforms, and models that are what their docstrings say."""

from __future__ import annotations

import hashlib
import importlib.util
import math
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from pol.errors import IntegrityError, UsageError
from pol.recipes import digits, text
from pol.recipes.digits import DigitsCNN
from pol.recipes.text import CharGPT

TEXT = ("It was the best of times, it was the worst of times. " * 40).encode()


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """A second thread gains nothing on tensors this small, and spins when the other core is busy."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture
def book(tmp_path: Path) -> str:
    path = tmp_path / "book.txt"
    path.write_bytes(TEXT)
    return str(path)


@pytest.fixture
def fresh_digits() -> Iterator[None]:
    digits.load_digits.cache_clear()
    yield
    digits.load_digits.cache_clear()


def tiny(**changes: Any) -> CharGPT:
    """A CharGPT that takes milliseconds."""
    small: dict[str, Any] = {
        "num_epochs": 2, "steps_per_epoch": 3, "batch_size": 2,
        "layers": 1, "heads": 2, "width": 8, "context": 6, "warmup": 2,
    }  # fmt: skip
    return CharGPT(**(small | changes))


def seeded(recipe: Any) -> SimpleNamespace:
    torch.manual_seed(1)
    return SimpleNamespace(**recipe.build())


def learning_rates(recipe: Any, steps: int) -> list[float]:
    """The rate of each step, and then the one after the last."""
    parts = seeded(recipe)
    rates = [parts.scheduler.get_last_lr()[0]]
    for _ in range(steps):
        parts.optimizer.step()
        parts.scheduler.step()
        rates.append(parts.scheduler.get_last_lr()[0])
    return rates


def assert_warms_up_and_ends_at_zero(rates: list[float], warmup: int, highest: float) -> None:
    assert rates[0] == pytest.approx(highest / warmup)
    assert rates[:warmup] == sorted(rates[:warmup])
    assert max(rates) == rates[warmup] == pytest.approx(highest)
    assert rates[warmup:] == sorted(rates[warmup:], reverse=True)
    assert 0 < rates[-2] < highest / 5
    assert rates[-1] == pytest.approx(0, abs=1e-12)


# --- digits


def test_digits_split_is_fixed_and_complete() -> None:
    train, test = digits.load_digits()
    assert (len(train), len(test)) == (1500, 297)
    assert DigitsCNN().data() is train
    for item in (train[0], test[-1]):
        assert item["image"].shape == (8, 8)
        assert item["image"].dtype == np.uint8
        assert type(item["label"]) is int
    assert [item["label"] for item in train[:10]] == list(range(10))


@pytest.mark.usefixtures("fresh_digits")
@pytest.mark.parametrize("column", [0, 64], ids=["a pixel", "a label"])
def test_digits_refuse_changed_data(monkeypatch: pytest.MonkeyPatch, column: int) -> None:
    read = np.loadtxt

    def changed(*args: Any, **kwargs: Any) -> Any:
        rows = read(*args, **kwargs)
        rows[-1, column] += 1
        return rows

    monkeypatch.setattr(np, "loadtxt", changed)
    with pytest.raises(IntegrityError, match="scikit-learn"):
        DigitsCNN().data()


@pytest.mark.usefixtures("fresh_digits")
def test_digits_without_scikit_learn_say_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UsageError, match=r"pip install 'proof-of-learning\[demo\]'"):
        DigitsCNN().data()


def test_digits_transform_depends_on_item_and_generator_only() -> None:
    recipe = DigitsCNN()
    item = recipe.data()[3]
    before = item["image"].copy()
    seen = set()
    for seed in range(60):
        one = recipe.transform(item, np.random.default_rng(seed))
        np.random.seed(seed + 1)  # the global generators must not matter
        torch.manual_seed(seed + 1)
        two = recipe.transform(item, np.random.default_rng(seed))
        assert np.array_equal(one["image"], two["image"])
        assert one["label"] == item["label"]
        assert one["image"].shape == (8, 8)
        seen.add(one["image"].tobytes())
    assert np.array_equal(item["image"], before)
    assert len(seen) == 9
    assert before.tobytes() in seen


def test_digits_schedule_warms_up_from_above_zero_and_ends_at_zero() -> None:
    recipe = DigitsCNN(num_epochs=2, batch_size=64, lr=0.2, warmup=0.25)  # 24 steps an epoch, one partial
    assert_warms_up_and_ends_at_zero(learning_rates(recipe, 48), 12, 0.2)


def test_digits_arguments_reach_the_parts() -> None:
    recipe = DigitsCNN(width=4, dropout=0.5, lr=0.3, momentum=0.0, weight_decay=0.01)
    parts = seeded(recipe)
    group = parts.optimizer.param_groups[0]
    assert (group["initial_lr"], group["momentum"], group["weight_decay"]) == (0.3, 0.0, 0.01)
    assert parts.model[0].out_channels == 4
    assert parts.model[8].p == 0.5


def test_digits_learn_and_leave_the_mode_alone() -> None:
    recipe = DigitsCNN(num_epochs=2, width=8)
    parts = seeded(recipe)
    data = recipe.data()
    rng = np.random.default_rng(1)
    for _ in range(recipe.num_epochs):
        for indices in np.split(rng.permutation(len(data)), len(data) // recipe.batch_size):
            items = [recipe.transform(data[i], rng) for i in indices]
            images = torch.from_numpy(np.stack([item["image"] for item in items]))
            recipe.step(parts, {"image": images, "label": torch.tensor([item["label"] for item in items])})
    assert recipe.accuracy(parts.model) > 0.8
    assert parts.model.training


# --- text


def test_help_topics_are_pinned_by_version(monkeypatch: pytest.MonkeyPatch) -> None:
    topics = text.topics_text()
    assert len(topics) > 300_000
    monkeypatch.setattr("platform.python_version", lambda: "3.99.0")
    with pytest.raises(UsageError, match=r"3\.99\.0: pass path=\.\.\. and sha256=\.\.\."):
        CharGPT().data()
    monkeypatch.setitem(text.TOPICS_SHA256, "3.99.0", "0" * 64)
    with pytest.raises(IntegrityError, match=r"help topics of Python 3\.99\.0"):
        CharGPT().data()
    monkeypatch.setitem(text.TOPICS_SHA256, "3.99.0", hashlib.sha256(topics).hexdigest())
    assert len(CharGPT().data()) == 1600


def test_a_text_file_is_checked_when_its_digest_is_given(book: str) -> None:
    right = hashlib.sha256(TEXT).hexdigest()
    assert len(tiny(path=book, sha256=right).data()) == len(tiny(path=book).data()) == 6
    with pytest.raises(IntegrityError, match=r"book\.txt"):
        tiny(path=book, sha256="0" * 64).data()


def test_a_text_is_opened_by_data_alone(tmp_path: Path) -> None:
    recipe = tiny(path=str(tmp_path / "missing.txt"))
    recipe.build()
    with pytest.raises(UsageError, match=r"missing\.txt"):
        recipe.data()


def test_windows_are_spread_over_the_text(book: str) -> None:
    recipe = tiny(path=book)
    data = recipe.data()
    assert recipe.data() is data
    stride = (len(TEXT) - 7) // 5
    for i, item in enumerate(data):
        assert item["tokens"].dtype == np.uint8
        assert item["tokens"].tobytes() == TEXT[i * stride : i * stride + 7]
        torch.from_numpy(item["tokens"])  # would warn if the memory were read-only
    with pytest.raises(UsageError, match="too few"):
        tiny(path=book, steps_per_epoch=3000).data()


def test_transform_of_text_changes_nothing(book: str) -> None:
    recipe = tiny(path=book)
    item = recipe.data()[1]
    assert recipe.transform(item, np.random.default_rng(0)) is item


@pytest.mark.parametrize("tied", [True, False])
def test_parameter_count_follows_the_formula(tied: bool) -> None:
    layers, width, context = 6, 384, 128
    recipe = CharGPT(layers=layers, heads=6, width=width, context=context, tied=tied)
    with torch.device("meta"):  # shapes alone: no time for ten million random numbers
        model = recipe.build()["model"]
    count = sum(parameter.numel() for parameter in model.parameters())
    embeddings = (256 * (1 if tied else 2) + context) * width
    assert count == layers * (12 * width**2 + 4 * width) + embeddings + 2 * width
    assert 10.7e6 < count < 10.9e6


def test_tied_weights_share_storage() -> None:
    tied, untied = tiny().build()["model"], tiny(tied=False).build()["model"]
    assert tied.head.weight is tied.tokens.weight
    assert tied.head.weight.data_ptr() == tied.tokens.weight.data_ptr()
    assert untied.head.weight.data_ptr() != untied.tokens.weight.data_ptr()


def test_mask_is_a_buffer_of_minus_infinities_and_is_causal() -> None:
    model = seeded(tiny()).model.eval()
    mask = dict(model.named_buffers())["mask"]
    assert "mask" in model.state_dict()
    assert torch.equal(mask == -math.inf, torch.ones(6, 6).triu(1).bool())
    assert torch.equal(mask.nan_to_num(neginf=0), torch.zeros(6, 6))
    tokens = torch.tensor([[1, 2, 3, 4, 5, 6]])
    changed = torch.tensor([[1, 2, 3, 9, 9, 9]])
    assert torch.equal(model(tokens)[:, :3], model(changed)[:, :3])
    assert not torch.equal(model(tokens)[:, 3:], model(changed)[:, 3:])


def test_weight_decay_is_for_matrices_only() -> None:
    matrices, vectors = tiny(weight_decay=0.3).build()["optimizer"].param_groups
    assert matrices["weight_decay"] == 0.3
    assert {parameter.dim() for parameter in matrices["params"]} == {2}
    assert vectors["weight_decay"] == 0.0
    assert {parameter.dim() for parameter in vectors["params"]} == {1}


def test_text_schedule_warms_up_from_above_zero_and_ends_at_zero() -> None:
    recipe = tiny(num_epochs=3, steps_per_epoch=10, warmup=5, lr=0.1)
    assert_warms_up_and_ends_at_zero(learning_rates(recipe, 30), 5, 0.1)


@pytest.mark.parametrize("clip", [1e-3, None])
def test_gradients_are_clipped_if_asked(book: str, clip: float | None) -> None:
    recipe = tiny(path=book, clip=clip)
    parts = seeded(recipe)
    tokens = torch.from_numpy(np.stack([item["tokens"] for item in recipe.data()[:2]]))
    loss = recipe.step(parts, {"tokens": tokens})
    assert loss.item() == pytest.approx(math.log(256), rel=0.05)
    norm = math.sqrt(sum(float(p.grad.square().sum()) for p in parts.model.parameters()))
    assert norm == pytest.approx(clip, rel=1e-2) if clip else norm > 0.01


def test_text_learns(book: str) -> None:
    recipe = tiny(path=book, num_epochs=10, steps_per_epoch=6, batch_size=8, width=16, context=16, lr=0.02)
    parts = seeded(recipe)
    data = recipe.data()
    losses = []
    for step in range(recipe.num_epochs * recipe.steps_per_epoch):
        start = step % recipe.steps_per_epoch * recipe.batch_size
        tokens = [item["tokens"] for item in data[start : start + recipe.batch_size]]
        losses.append(recipe.step(parts, {"tokens": torch.from_numpy(np.stack(tokens))}).item())
    assert losses[-1] < losses[0] - 2


def test_heads_must_divide_the_width() -> None:
    with pytest.raises(UsageError, match="multiple"):
        CharGPT(width=10, heads=4)
