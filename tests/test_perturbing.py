"""Replays in another arithmetic, and with other hyperparameters: what they compute, and where they cannot."""

import pytest
import torch
from torch import nn

from pol.errors import UsageError
from pol.replay.engine import Frame, Position, advance
from pol.replay.perturbing import driver
from pol.replay.randomness import Streams
from pol.replay.recipe import Recipe
from pol.replay.state import State

SEED = bytes(32)
SAMPLES, BATCH = 12, 4


def inputs():
    return torch.randn(SAMPLES, 3, generator=torch.Generator().manual_seed(1))


class Line(Recipe):
    batch_size = BATCH
    width = 3

    def data(self):
        return [{"x": row, "y": row.sum()} for row in inputs()]

    def model(self):
        return nn.Sequential(nn.Linear(3, self.width), nn.Tanh(), nn.Linear(self.width, 1))

    def build(self):
        model = self.model()
        return {"model": model, "optimizer": torch.optim.SGD(model.parameters(), 0.1, momentum=0.9, weight_decay=0.01)}

    def forward(self, model, batch):
        return model(batch["x"].float())[:, 0]  # a float32 of its own making, as many recipes do

    def step(self, parts, batch):
        loss = (self.forward(parts.model, batch) - batch["y"]).square().mean()
        parts.optimizer.zero_grad()
        loss.backward()
        parts.optimizer.step()
        return loss


class Watching:
    """An observer that keeps everything."""

    def __init__(self):
        self.batches, self.states, self.rates = [], [], []

    def batch(self, step, batch, chosen):
        self.batches.append(batch)

    def item(self, index, item):
        """Nothing to note."""

    def closed(self, step, loss, rates, take, counts, momenta):
        self.rates.append(rates)
        self.states.append({key: tensor.detach().clone() for key, tensor in take().tensors.items()})


def began(recipe):
    """The state after one step, so that there is momentum, and the declaration."""
    Streams(SEED).init()
    built = advance(recipe, Frame(Streams(SEED)), Position(), stop=1)
    return State({key: t.detach().clone() for key, t in built.state.tensors.items()}), built


def replay(recipe, perturbed=None, factors=None, *, begin=1, stop=3):
    start, built = began(recipe)
    if not begin:
        first = advance(recipe, Frame(Streams(SEED)), Position(), stop=0)
        start = State({key: t.detach().clone() for key, t in first.state.tensors.items()})
    frame = Frame(Streams(SEED), built.declaration, built.batches_per_step)
    watching = Watching()
    advance(recipe, frame, Position(begin, start, {}), stop, watching, driver(perturbed, factors or {}))
    return start, watching


def by_hand(start, batches, dtype, rate=0.1, decay=0.01):
    """The same steps, written out."""
    keys = [key for key in start.tensors if key.startswith("parameter/")]
    weights = [start.tensors[key].detach().to(dtype).requires_grad_() for key in keys]
    momenta = [start.tensors[f"optimizer/optimizer.{key[10:]}.momentum_buffer"].to(dtype) for key in keys]
    for batch in batches:
        one, bias, two, shift = weights
        x, y = batch["x"].to(dtype), batch["y"].to(dtype)
        found = (torch.tanh(x @ one.T + bias) @ two.T + shift)[:, 0]
        gradients = torch.autograd.grad((found - y).square().mean(), weights)
        momenta = [
            0.9 * m + g + decay * w.detach() for m, g, w in zip(momenta, gradients, weights, strict=True)
        ]  # fmt: skip
        weights = [(w - rate * m).detach().requires_grad_() for w, m in zip(weights, momenta, strict=True)]
    return dict(zip(keys, (w.detach() for w in weights), strict=True))


# -- float64 ------------------------------------------------------------------------------------------------------


def test_in_float64_the_same_steps_are_taken():
    start, found = replay(Line, "float64")
    _, plain = replay(Line)
    expected = by_hand(start, found.batches, torch.float64)
    for key, value in expected.items():
        assert torch.equal(found.states[-1][key], value.float()), key  # rounded once, at the end
    assert any(not torch.equal(plain.states[-1][key], found.states[-1][key]) for key in expected)
    assert {k: t.dtype for k, t in plain.states[-1].items()} == {k: t.dtype for k, t in found.states[-1].items()}
    for a, b in zip(plain.batches, found.batches, strict=True):  # what is recorded of a batch is what it was
        assert torch.equal(a["x"], b["x"])
        assert b["x"].dtype is torch.float32


def test_moments_that_the_first_step_makes_are_recorded_in_their_type():
    _, found = replay(Line, "float64", begin=0, stop=1)
    kept = {key: tensor.dtype for key, tensor in found.states[0].items() if key.startswith("optimizer/")}
    assert set(kept.values()) == {torch.float32}
    assert len(kept) == 4


class Double(Line):
    def model(self):
        return super().model().double()

    def forward(self, model, batch):
        return model(batch["x"].double())[:, 0]


def test_what_is_float64_already_is_said():
    with pytest.raises(UsageError, match="float64 already"):
        replay(Double, "float64")


# -- in two halves ------------------------------------------------------------------------------------------------


def test_in_two_halves_the_same_steps_are_taken():
    _, found = replay(Line, "split")
    _, plain = replay(Line)
    for key, tensor in plain.states[-1].items():
        torch.testing.assert_close(found.states[-1][key], tensor, rtol=1e-5, atol=1e-6)


class Sized(nn.Module):
    def __init__(self):
        super().__init__()
        self.inner, self.sizes = nn.Linear(3, 1), []

    def forward(self, x):
        self.sizes.append(len(x))
        return self.inner(x)


def test_halves_are_halves():
    made = []

    class Watched(Line):
        def model(self):
            made.append(Sized())
            return made[-1]

    class Ignoring(Watched):
        def train(self, run):
            parts = run.attach(**self.build(), ignored=("model.sizes",))
            for _ in run.epochs(1):
                for batch in run.batches(self.data(), size=self.batch_size):
                    run.commit(loss=self.step(parts, batch))

    replay(Ignoring, "split")
    assert made[-1].sizes == [4, 2, 2, 2, 2]  # the first is the look whether it is the same function


class Normed(Line):
    def model(self):
        return nn.Sequential(nn.Linear(3, 3), nn.BatchNorm1d(3), nn.Linear(3, 1))


class NormedWithout(Line):
    def model(self):
        return nn.Sequential(nn.Linear(3, 3), nn.BatchNorm1d(3, track_running_stats=False), nn.Linear(3, 1))


class Dropping(Line):
    def model(self):
        return nn.Sequential(nn.Linear(3, 3), nn.Dropout(0.5), nn.Linear(3, 1))


class Centred(nn.Linear):
    def forward(self, x):
        return super().forward(x - x.mean(0))


class Centring(Line):
    def model(self):
        return Centred(3, 1)


class Mean(nn.Linear):
    def forward(self, x):
        return super().forward(x).mean()


class Losing(Line):
    def model(self):
        return Mean(3, 1)

    def step(self, parts, batch):
        loss = parts.model(batch["x"]).square()
        parts.optimizer.zero_grad()
        loss.backward()
        parts.optimizer.step()
        return loss


class Inside(Line):
    """Calls what is inside of the attached module."""

    def forward(self, model, batch):
        return model[2](model[1](model[0](batch["x"])))[:, 0]


@pytest.mark.parametrize(
    ("recipe", "message"),
    [
        (Normed, "keeps statistics"),
        (NormedWithout, "another function of half a batch"),
        (Dropping, "draws random numbers"),
        (Centring, "another function of half a batch"),
        (Losing, "gives other things"),
        (Inside, "no attached module was called"),
    ],
)
def test_where_halves_are_another_function_it_is_said(recipe, message):
    replay(recipe)  # which can be replayed as it is
    with pytest.raises(UsageError, match=message):
        replay(recipe, "split")


# -- other hyperparameters ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(("factors", "told"), [({"lr": 1.5}, {"rate": 0.15}), ({"weight_decay": 0.0}, {"decay": 0.0})])
def test_hyperparameters_are_others_in_the_steps_alone(factors, told):
    start, found = replay(Line, None, factors)
    for key, value in by_hand(start, found.batches, torch.float64, **told).items():
        torch.testing.assert_close(found.states[-1][key], value.float(), rtol=1e-5, atol=1e-6)
    _, plain = replay(Line)
    assert found.rates == plain.rates == [[0.1], [0.1]]


def test_nothing_different_is_the_ordinary_run():
    _, plain = replay(Line)
    _, found = replay(Line, None, {"lr": 1.0})
    assert all(torch.equal(found.states[-1][key], tensor) for key, tensor in plain.states[-1].items())
