"""What errors within every limit do to what a model says: little to an ordinary one, everything to one made for it."""

import functools
import tempfile
from pathlib import Path

import msgspec
import pytest
import torch
from safetensors.torch import load_file

from factory import PLAIN, RECIPE, TOLERANCE, check, decision, factory, judge, known_key, same_every_time
from pol import policies
from pol.attacks import edging, laundries, steering
from pol.attacks.attack import Attack
from pol.attacks.registry import REGISTRY
from pol.attacks.workshop import Workshop
from pol.errors import UsageError
from pol.profile import Profile
from pol.proof.policy import EXACT, Limits, Paper, Policy
from pol.proof.report import Verdict
from pol.prover import record
from pol.replay.data import default_collate
from pol.replay.inprocess import InProcess
from pol.replay.recipe import load

OF_2021 = Policy(name="paper-2021", procedure="paper-2021", paper=Paper())
KNOWN = {"2021": OF_2021}
"""Policies that a forger has read, by a name."""


def logits(proof, recipe=RECIPE, at=-1, change=None):
    """What a model of a proof says of all training data."""
    made = load(recipe)()
    parts = laundries.Attached(**made.build())
    state = load_file(sorted((proof / "checkpoints").iterdir())[at])
    weights = {key.partition("/")[2]: tensor for key, tensor in state.items() if key.startswith(("p", "b"))}
    if change is not None:
        change(weights)
    laundries.put({"model": parts.model}, weights)
    parts.model.eval()
    with torch.no_grad():
        return laundries.outputs(made, parts, "model", default_collate(list(made.data())))


def odds(said):
    """Mean log odds of the class that is aimed at."""
    others = [index for index in range(said.shape[1]) if index != steering.AIM]
    return float((said[:, steering.AIM] - torch.logsumexp(said[:, others], dim=1)).mean())


def share(said):
    return float((said.argmax(dim=1) == steering.AIM).double().mean())


@functools.cache
def forged(where, recipe=RECIPE, rule="tolerance", known=""):
    """A run that is steered, or with ``_nothing`` the same run without pushes: of one genesis."""
    out = Path(tempfile.mkdtemp(prefix="pol-steering-")) / "out"
    attack = Attack("test", "a test", "thief", steering._steer(getattr(steering, where, lambda _: {})), adapts=True)
    target = factory().proof(rule=rule, recipe=recipe)
    with same_every_time("steering"):
        return attack.forge(target, out, known_key(2), recipe, InProcess(), policy=KNOWN.get(known)).path


# -- ordinary models ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("recipe", [RECIPE, PLAIN])
@pytest.mark.parametrize("where", ["_parameters", "_elements", "_smallest", "_statistics"])
def test_a_steered_run_is_accepted_and_gains_next_to_nothing(where, recipe):
    """As a share of how far the odds moved in training.

    Of five seeds: -0.5 to 1 % (Toy, whose batches of two grow every push), 0.06 to 0.2 % (Plain), 0.07 % by buffers.
    The limits of all parameters together are 0.1 % of the way.
    """
    if (where, recipe) == ("_statistics", PLAIN):
        with pytest.raises(UsageError, match="a model with running statistics"):
            forged(where, recipe)
        return
    path, honest = forged(where, recipe), forged("nothing", recipe)
    report = check(path, recipe, policy=TOLERANCE)
    assert report.verdict is Verdict.ACCEPT, report.reason()
    assert all(0.5 < result.deviation.error / result.deviation.limit < 1 for result in report.intervals)
    said, otherwise = logits(path, recipe), logits(honest, recipe)
    gained = (odds(said) - odds(otherwise)) / float((otherwise - logits(honest, recipe, at=0)).abs().mean())
    assert gained != 0
    assert gained > 0 or recipe == RECIPE
    assert abs(gained) < 0.02
    assert (said.argmax(dim=1) != otherwise.argmax(dim=1)).sum() <= 2
    assert check(honest, recipe, policy=TOLERANCE).verdict is Verdict.ACCEPT


def test_buffers_are_in_no_budget():
    """The drift that a report names is of parameters: these errors leave it as it is."""
    found = [check(forged(where), policy=TOLERANCE).drift for where in ("_statistics", "nothing")]
    assert found[0].bound == pytest.approx(found[1].bound, rel=1e-3)


def test_running_statistics_are_pushed_along_their_gradient():
    """By differences: autograd does not say it."""
    with same_every_time("steering"):
        workshop = Workshop(factory().proof(), known_key(2), RECIPE, Path(tempfile.mkdtemp()), InProcess())
        aims = _aims(workshop)
    for key, wanted, found in aims:
        assert wanted == pytest.approx(found, rel=0.05, abs=1e-4), key


def _aims(workshop):
    aim, state = steering._Aim(workshop), workshop.stolen()
    wanted = aim.wants(state)
    found = []
    for key in ("buffer/model.1.running_mean", "buffer/model.1.running_var", "parameter/model.4.bias"):
        for index in range(3):
            ends = []
            for by in (1e-2, -1e-2):
                moved = dict(state.tensors)
                moved[key] = moved[key].clone()
                moved[key][index] += by
                aim.wants(steering.State(moved))  # puts them into the model
                with torch.no_grad():
                    ends.append(odds(laundries.outputs(aim._made, aim._parts, "model", aim._batch)))
            found.append((f"{key} {index}", float(wanted[key][index]), (ends[0] - ends[1]) / 2e-2))
    return found


@pytest.mark.slow
def test_on_digits_a_steered_run_says_what_it_would_have_said(tmp_path):
    """Pushes of 0.4 % of the way in all: the first ones grow, the run ends elsewhere, and no nearer to the aim."""
    digits, policy = "pol.recipes.digits:DigitsCNN", policies.load("tolerance")
    options = {"profile": Profile(threads=1), "executor": InProcess()}
    with same_every_time("target"):
        record(digits, tmp_path / "target", key=known_key(1), every=1, keep=1, rule="tolerance", **options)
    said = {}
    for where in ("_parameters", "nothing"):
        attack = Attack("test", "a test", "thief", steering._steer(getattr(steering, where, lambda _: {})), adapts=True)
        with same_every_time("steering"):
            forgery = attack.forge(
                tmp_path / "target", tmp_path / where, known_key(2), digits, InProcess(), policy=policy
            )
        if where != "nothing":
            report = check(forgery.path, digits, policy=policy)
            assert report.verdict is Verdict.ACCEPT, report.reason()
        said[where] = logits(forgery.path, digits)
    labels = torch.tensor([item["label"] for item in load(digits)().data()])
    right = {where: float((found.argmax(dim=1) == labels).double().mean()) for where, found in said.items()}
    assert min(right.values()) > 0.99
    assert abs(share(said["_parameters"]) - share(said["nothing"])) < 0.005
    assert (said["_parameters"] - said["nothing"]).abs().mean() > 0.1  # though it is another run


# -- a model made for it --------------------------------------------------------------------------------------------


def test_an_amplified_model_says_one_class_and_is_accepted():
    """Documented (attack study, A20): no limit on numbers bounds what a program makes of them; rule exact has none."""
    forgery, report = factory().forgery("amplified", rule="tolerance"), judge("amplified", rule="tolerance")
    assert report.verdict is Verdict.ACCEPT, report.reason()
    nearest = report.intervals[-1].deviation
    assert (nearest.tensor, nearest.relative) == ("buffer/model.gate", 0)
    assert nearest.error < nearest.limit < 1e-4
    assert share(logits(forgery.path, forgery.recipe)) == 1

    def honest(weights):
        weights["model.gate"][0] = weights["model.gate"][1]

    said = logits(forgery.path, forgery.recipe, change=honest)
    assert share(said) < 0.8
    assert torch.equal(said, logits(forgery.path, RECIPE, change=lambda weights: weights.pop("model.gate")))
    assert decision(judge("amplified")) == (Verdict.REJECT, 7)


def test_limits_a_hundred_times_tighter_leave_as_much():
    tight = msgspec.structs.replace(TOLERANCE.limits, relative=1e-5, absolute=3e-7)
    policy = msgspec.structs.replace(TOLERANCE, limits=tight)
    out = Path(tempfile.mkdtemp(prefix="pol-steering-")) / "out"
    with same_every_time("steering"):
        forgery = REGISTRY["amplified"].forge(
            factory().proof(rule="tolerance"), out, known_key(2), RECIPE, InProcess(), policy=policy
        )
    report = check(forgery.path, forgery.recipe, policy=policy)
    assert report.verdict is Verdict.ACCEPT, report.reason()
    assert share(logits(forgery.path, forgery.recipe)) == 1


# -- whose limits ---------------------------------------------------------------------------------------------------


def test_one_tensor_takes_all_that_a_global_limit_leaves():
    """The verification of 2021 has one limit for all parameters; three of them decide of a third of the data."""
    steered, honest = (forged(where, rule="exact", known="2021") for where in ("_smallest", "nothing"))
    report = check(steered, policy=OF_2021)
    assert report.verdict is Verdict.ACCEPT, report.reason()
    assert share(logits(steered)) > share(logits(honest)) + 0.2
    assert decision(check(steered)) == (Verdict.REJECT, 7)
    under_tolerance = forged("_smallest", known="2021")
    assert decision(check(under_tolerance, policy=TOLERANCE)) == (Verdict.REJECT, 7)


def test_a_forger_who_knows_no_limits_assumes_those_of_the_preset():
    preset = policies.load("tolerance").limits
    for policy in (None, EXACT, TOLERANCE):
        assert steering._push(policy).args == (preset,)
    assert preset == Limits(relative=1e-3, absolute=3e-5)
    own = msgspec.structs.replace(TOLERANCE, limits=Limits(relative=1e-5, absolute=1e-6))
    assert steering._push(own).args == (own.limits,)


def test_deltas_of_2021_are_those_of_the_policy():
    assert steering._push(Policy(procedure="paper-2021", paper=Paper(delta={"linf": 0.5}))).args == ({"linf": 0.5},)
    push = functools.partial(steering._at_once, {"l1": 1.0, "l2": 1.0, "linf": 1.0}, "parameter/w", torch.zeros(4))
    found = push(torch.zeros(4), torch.tensor([5.0, -1.0, 0.0, 1.0]))
    assert torch.allclose(found, 0.95 * torch.tensor([0.25, -0.25, 0.0, 0.25]))


def test_a_push_is_within_its_limit_after_rounding_or_is_none():
    limits = Limits(relative=1e-3, absolute=3e-5, floor=0.0)
    start, end = torch.zeros(4), torch.tensor([1e-3, 1.0, -1.0, 0.0])
    push = functools.partial(edging.pushed, limits, "parameter/w")
    found = push(start, end, torch.ones(4))
    error = (found.double() - end.double()).norm()
    assert 0.8 * 6e-5 < float(error) <= 6e-5  # absolute: 3e-5 times the root of four
    assert found[3] == 0  # what stands still is compared bit for bit
    assert torch.equal(push(start, end, torch.zeros(4)), end)
    coarse = functools.partial(edging.pushed, Limits(relative=1e-9, absolute=1e-9, floor=0.0), "parameter/w")
    assert torch.equal(coarse(start, torch.ones(4), torch.ones(4)), torch.ones(4))
