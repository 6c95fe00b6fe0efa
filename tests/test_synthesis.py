"""Samples that are made to go with a straight line to stolen weights (Zhang et al.): what they do, and what passes."""

import tempfile
from itertools import pairwise
from pathlib import Path

import msgspec
import numpy as np
import pytest
import torch

from factory import PLAIN, RECIPE, TOLERANCE, check, factory, forge, judge, known_key, recipe_of, same_every_time
from pol.attacks import lines, matching, synthesis
from pol.attacks.forger import Forger
from pol.attacks.programs import SAMPLES, read_items
from pol.attacks.registry import REGISTRY
from pol.attacks.workshop import Workshop
from pol.errors import UsageError
from pol.profile import Profile
from pol.proof.policy import Limits, Paper, Policy, Reference
from pol.proof.report import Verdict
from pol.prover import record
from pol.replay.inprocess import InProcess
from pol.replay.recipe import load as load_recipe
from pol.replay.state import State
from switches import switch_off

NAMES = ("synthesised-steps", "suppressed-steps", "suppressed-intervals")
DIGITS = "pol.recipes.digits:DigitsCNN"
REFERENCE = Reference(calibration="", recipe="", l1=500.0, l2=9.0, linf=2.0, cos=0.5)


def original(reference=None, **changes):
    """The policy of 2021; Q is 0 unless told otherwise: every interval is taken again."""
    paper = Paper(**{"top": 0, **changes})
    return Policy(name="paper-2021", procedure="paper-2021", paper=paper, reference=reference)


def forged(name, target, recipe=PLAIN, policy=None):
    """A forgery that is made beside its target."""
    out = Path(tempfile.mkdtemp(dir=target.parent)) / name
    with same_every_time(name):
        return REGISTRY[name].forge(target, out, known_key(2), recipe, InProcess(), policy=policy)


def rho(forgery):
    """By kept interval: the error of a replay over the claimed move, of all parameters."""
    with tempfile.TemporaryDirectory() as scratch:
        workshop = Workshop(forgery.path, known_key(2), forgery.recipe, Path(scratch), InProcess())
        claimed, taken, found = workshop.open(), workshop.open(), []
        for before, after in pairwise(claimed.kept):
            workshop.train(taken, before, after)
            start, end, replayed = map(weights, (claimed.states[before], claimed.states[after], taken.states[after]))
            found.append(float((replayed - end).norm() / (end - start).norm()))
            taken.states[after] = claimed.states[after]
    return found


def weights(state):
    return torch.cat([t.double().flatten() for key, t in sorted(state.tensors.items()) if key.startswith("parameter/")])


# -- what they do -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("name", "keep"), [*((name, 1) for name in NAMES), ("suppressed-intervals", 2)])
def test_the_line_ends_at_the_stolen_weights_and_every_piece_is_below_delta(name, keep):
    claimed, target = Forger(factory().forgery(name, keep).path), Forger(factory().proof(keep, recipe=PLAIN))
    stolen = target.states[target.steps].tensors
    for key, tensor in claimed.states[claimed.steps].tensors.items():
        assert not key.startswith(("parameter/", "buffer/")) or torch.equal(tensor, stolen[key])
    states = [weights(claimed.states[step]) for step in claimed.kept]
    moves = torch.stack([after - before for before, after in pairwise(states)])
    assert len(moves) > 5
    assert float(moves.abs().max()) <= synthesis.SHARE * 0.1
    assert torch.allclose(moves, moves[0], atol=1e-6)


@pytest.mark.parametrize("name", NAMES)
def test_the_verification_of_2021_accepts_every_interval(name):
    report = judge(name, policy=original())
    assert (report.verdict, report.assurance.level) == (Verdict.ACCEPT, "broken"), report.reason()
    assert len(report.intervals) == 11


@pytest.mark.parametrize("name", NAMES)
def test_samples_are_genuine_ones_with_changed_inputs_in_the_range_of_genuine_ones(name):
    forgery = factory().forgery(name)
    claimed = Forger(forgery.path)
    items = read_items(forgery.path.with_name(f"{forgery.path.name}-published") / SAMPLES)
    assert len(items) == claimed.genesis.spec.declaration.samples == claimed.steps * 4
    values = np.stack([item["x"] for item in load_recipe(PLAIN)().data()])
    made = np.stack([item["x"] for item in items])
    assert values.min() <= made.min() < made.max() <= values.max()
    assert {item["y"] for item in items} == {0, 1, 2}
    assert not any(np.array_equal(item, x) for item in made for x in values)
    order = np.frombuffer(claimed.order, "<u4")
    assert np.array_equal(order, np.arange(len(items)))  # and so every sample is used once


def test_attack_one_does_not_reproduce():
    """Its pieces pass because they are small: no step goes along the line by as much as a quarter (measured: 0.86)."""
    assert 0.75 < min(rho(factory().forgery("synthesised-steps"))) < 1


@pytest.mark.parametrize("name", NAMES[1:])
def test_attacks_two_and_three_move_nothing(name):
    found = rho(factory().forgery(name))
    assert all(0.8 < each < 1.2 for each in found), found


@pytest.mark.parametrize("name", NAMES[1:])
def test_every_evaluation_is_counted(name, monkeypatch):
    seen = []
    evaluate = matching.Objective.__call__

    def counted(self):
        seen.append(len(self._batch[self._inputs]) // 4)
        return evaluate(self)

    monkeypatch.setattr(matching.Objective, "__call__", counted)
    forgery = forged(name, factory().proof(recipe=PLAIN))
    steps = Forger(forgery.path).steps
    controls = 2 * 2 * 3  # of two registrations, one before the samples are made and one after
    assert forgery.cost.gradients == controls + 2 * steps + matching.EVALUATION * sum(seen)
    assert sum(seen) > 10 * steps


# -- against limits ---------------------------------------------------------------------------------------------------

TIGHT = original(delta={"l2": 0.15})
"""Below what three steps with genuine samples move."""


@pytest.mark.parametrize("name", NAMES[1:])
def test_the_forger_reads_the_deltas_and_its_samples_keep_them(name, monkeypatch):
    assert judge(name, policy=TIGHT).verdict is Verdict.REJECT  # made for the deltas of the code
    target = factory().proof(recipe=PLAIN)
    forgery = forged(name, target, policy=TIGHT)
    report = check(forgery.path, forgery.recipe, policy=TIGHT)
    assert report.verdict is Verdict.ACCEPT, report.reason()
    assert check(forgery.path, forgery.recipe).verdict is Verdict.REJECT
    monkeypatch.setattr(matching.Objective, "minimise", lambda self, *_: self._batch[self._inputs])
    forgery = forged(name, target, policy=TIGHT)  # the same line with genuine samples
    report = check(forgery.path, forgery.recipe, policy=TIGHT)
    assert (report.verdict, report.caught_by) == (Verdict.REJECT, 7), report.reason()


@pytest.mark.parametrize("name", NAMES)
def test_a_limit_relative_to_the_move_refuses_all_three(name, monkeypatch):
    """A limit of half of each move, which is five hundred times the preset's, and no other."""
    anything = Limits(relative=0.5, absolute=1e200, floor=0.0, loss=1e300, drift=1e300)
    policy = msgspec.structs.replace(TOLERANCE, limits=anything, assurance="observed", order="permutation")
    switch_off("origin", monkeypatch)
    report = judge(name, rule="tolerance", policy=policy)
    assert (report.verdict, report.caught_by) == (Verdict.REJECT, 7), report.reason()
    wrong = [result for result in report.intervals if result.status == "failed"]
    assert len(wrong) > 0.8 * len(report.intervals)


def line(*points):
    return (State({"parameter/w": torch.tensor(point, dtype=torch.float64)}) for point in points)


@pytest.mark.parametrize(
    ("limit", "count"),
    [({"l1": 0.71}, 10), ({"l2": 0.5}, 10), ({"linf": 0.41}, 10), ({"l2": 9.0}, 1), ({"cos": 0.3}, 3), ({}, 1)],
)
def test_pieces_of_a_line(limit, count):
    assert lines.pieces(*line([3.0, 0.0], [0.0, 4.0]), limit, 1.0) == count


def test_no_line_is_fine_enough_for_deltas_of_nothing():
    for limit in ({"l2": 0.0}, {"cos": 0.0}, {"linf": 1e-9}):
        assert lines.pieces(*line([3.0, 0.0], [0.0, 4.0]), limit) > lines.MOST


# -- the gradient of any recipe's step -----------------------------------------------------------------------------


def test_looking_for_samples_leaves_no_trace_in_the_training(tmp_path):
    """With batch normalisation, dropout, momentum and a schedule: the steps that follow are those of the honest run."""
    steps = []

    def step(recipe, parts, batch):
        parameters = matching.trained(parts)
        objective = matching.Objective(
            recipe, parts, batch, "x", (-9.0, 9.0), {p: torch.zeros_like(p) for p in parameters}, 1e-4
        )
        objective.minimise(3)
        loss = type(recipe).step(recipe, parts, batch)
        true = sum(float(p.grad.square().sum()) for p in parameters)
        steps.append((objective.first, true, objective.best))
        return loss

    def make(workshop, out):
        forger = workshop.open()
        workshop.train(forger, step=step)
        forger.seal(out, workshop.key)

    report = check(forge(tmp_path, make).path)
    assert report.verdict is Verdict.ACCEPT, report.reason()
    assert len(steps) == 14
    assert all(first == pytest.approx(true) for first, true, _ in steps)  # under the draws of the step itself
    assert all(best < first for first, _, best in steps)


OTHERS = """
import torch
from plain import Plain
class Tokens(Plain):
    def data(self):
        return [{**item, "x": item["x"].astype("int64")} for item in super().data()]
    def step(self, parts, batch):
        return super().step(parts, {**batch, "x": batch["x"].float()})
class Pairs(Plain):
    def data(self):
        return [tuple(item.values()) for item in super().data()]
    def step(self, parts, batch):
        return super().step(parts, dict(zip("xy", batch)))
class Functional(Plain):
    def step(self, parts, batch):
        loss = torch.nn.functional.cross_entropy(parts.model(batch["x"]), batch["y"])
        parameters = list(parts.model.parameters())
        for parameter, gradient in zip(parameters, torch.autograd.grad(loss, parameters)):
            parameter.grad = gradient
        parts.optimizer.step()
        return loss
class Rounded(Plain):
    def step(self, parts, batch):
        return super().step(parts, {**batch, "x": batch["x"].detach().round()})
"""
REFUSED = {
    "Tokens": "samples with an array of fractions or pixels",
    "Pairs": "samples that are dicts",
    "Functional": r"a recipe whose step calls loss\.backward\(\)",
    "Rounded": "a loss that is a smooth function of the inputs",
}


@pytest.mark.parametrize("name", REFUSED)
def test_recipes_that_it_does_not_apply_to(tmp_path, name):
    (tmp_path / "plain.py").write_text(Path(PLAIN.rpartition(":")[0]).read_text())
    (tmp_path / "others.py").write_text(OTHERS)
    recipe = f"{tmp_path / 'others.py'}:{name}"
    with pytest.raises(UsageError, match=f"this attack needs {REFUSED[name]}"):
        forged("suppressed-steps", recorded(tmp_path, recipe, every=3), recipe)


def test_no_forgery_is_made_where_no_line_is_fine_enough():
    with pytest.raises(UsageError, match="deltas that a line of 10000 pieces keeps"):
        forged("suppressed-steps", factory().proof(recipe=PLAIN), policy=original(delta={"l2": 0.0}))


def test_attack_one_needs_steps_without_momentum():
    with pytest.raises(UsageError, match="by SGD, whose momentum can be set to 0"):
        forged("synthesised-steps", factory().proof(), RECIPE)
    assert all(recipe_of(name) == PLAIN for name in NAMES)


# -- a network --------------------------------------------------------------------------------------------------------


def recorded(where, recipe, **options):
    with same_every_time("honest"):
        record(recipe, where / "honest", key=known_key(1), profile=Profile(threads=1), executor=InProcess(), **options)
    return where / "honest"


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_digits(tmp_path, monkeypatch, name):
    target = recorded(tmp_path, DIGITS, every=10, settings={"num_epochs": 2, "width": 4})
    forgery = forged(name, target, DIGITS)
    report = check(forgery.path, forgery.recipe, policy=original())
    assert report.verdict is Verdict.ACCEPT, report.reason()
    assert check(forgery.path, forgery.recipe).verdict is Verdict.REJECT
    assert min(rho(forgery)) > 0.9
    if name == "suppressed-steps":
        monkeypatch.setattr(matching.Objective, "minimise", lambda self, *_: self._batch[self._inputs])
        genuine = forged(name, target, DIGITS)
        report = check(genuine.path, genuine.recipe, policy=original())
        assert (report.verdict, report.caught_by) == (Verdict.REJECT, 7), report.reason()
