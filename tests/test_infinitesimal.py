"""Fang et al.: what their forgeries achieve, what they cost, and how they follow the limits of a policy."""

import itertools
from types import SimpleNamespace

import pytest
import torch
from msgspec import structs

from factory import PLAIN, RECIPE, STEPS, InProcess, check, factory, judge, known_key, same_every_time
from pol.attacks import deltas, infinitesimal, lines, untaken
from pol.attacks.forger import Forger
from pol.attacks.interpolation import between
from pol.attacks.registry import REGISTRY
from pol.errors import UsageError
from pol.proof.policy import EXACT, Paper, Policy, Reference
from pol.proof.report import Verdict
from pol.replay.state import State
from pol.verifier import paper_audit
from references import LONGER

REFERENCE = Reference(
    calibration="sha256:" + "00" * 32, recipe="sha256:" + "00" * 32, l1=90.0, l2=4.0, linf=0.9, cos=0.5
)


def original(reference=None, **changes):
    return Policy(name="paper-2021", procedure="paper-2021", paper=Paper(**changes), reference=reference)


def forged(tmp_path, name, policy, recipe=PLAIN):
    with same_every_time(name):
        return REGISTRY[name].forge(
            factory().proof(recipe=recipe), tmp_path / "out", known_key(2), recipe, InProcess(), policy=policy
        )


def fooled(forgery, policy):
    report = check(forgery.path, forgery.recipe, policy=policy)
    assert (report.verdict, report.assurance.level) == (Verdict.ACCEPT, "broken"), report.reason()
    return report


def parameters(state):
    return {key: tensor for key, tensor in state.tensors.items() if key.startswith("parameter/")}


def assert_ends_at_the_stolen_weights(path, recipe):
    found, target = Forger(path), Forger(factory().proof(recipe=recipe))
    last, stolen = parameters(found.states[found.steps]), parameters(target.states[STEPS if recipe == PLAIN else 84])
    assert last.keys() == stolen.keys()
    assert all(torch.equal(last[key], stolen[key]) for key in stolen)


def pieces(path):
    forger = Forger(path)
    return [deltas.apart(forger.states[a], forger.states[b]) for a, b in itertools.pairwise(forger.kept)]


# -- what is known of the verification of 2021 ------------------------------------------------------------------


@pytest.mark.parametrize(
    "policy",
    [
        original(),
        original(delta={"l2": 7.0}),
        original(REFERENCE, fraction=0.01),
        original(REFERENCE, delta={"l2": 0.001, "cos": 1.0}, fraction=0.008, choose=("l1",), top=5),
    ],
)
def test_a_forger_reads_the_same_deltas_as_the_verifier(policy):
    assert deltas.deltas(policy) == paper_audit.limits(policy)
    assert deltas.top(policy) == policy.paper.top
    assert deltas.choosing(policy) == (policy.paper.choose or tuple(deltas.deltas(policy)))


@pytest.mark.parametrize("policy", [None, EXACT])
def test_without_these_the_constants_of_the_code_are_assumed(policy):
    assert deltas.deltas(policy) == paper_audit.CODE
    assert deltas.top(policy) == Paper().top
    assert deltas.choosing(policy) == tuple(paper_audit.CODE)


# -- infinitesimal updates --------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["infinitesimal", "infinitesimal-matched"])
def test_infinitesimal_updates_end_at_the_stolen_weights_without_a_gradient(name):
    forgery = factory().forgery(name)
    assert_ends_at_the_stolen_weights(forgery.path, PLAIN)
    assert forgery.cost.gradients % 6 == 0  # the control run of a genesis, twice, of each genesis that was begun
    assert Forger(forgery.path).intervals[-1].learning_rates[0].values == [repr(untaken.STILL)]


def test_of_what_it_does_not_take_a_log_has_the_true_batches():
    report = judge("infinitesimal")
    assert report.verdict is Verdict.REJECT
    assert all("batches" not in result.detail for result in report.intervals)


LIMITS = {
    "l1": {"delta": {"l1": 7.0}},
    "l2": {"delta": {"l2": 0.3}},
    "linf": {"delta": {"linf": 0.05}},
    "cos": {"delta": {"cos": 2e-3}},
    "fraction": {"fraction": 0.05, "reference": REFERENCE},
}


@pytest.mark.parametrize("named", LIMITS)
def test_any_delta_is_kept_to_although_everything_is_replayed(tmp_path, named):
    policy = original(top=0, **LIMITS[named])
    forgery = forged(tmp_path, "infinitesimal", policy)
    report = fooled(forgery, policy)
    assert len(report.draws.all()) == len(pieces(forgery.path)) > 14
    half = {name: limit / 4 for name, limit in deltas.deltas(policy).items()}  # what the forger did not know of
    report = check(forgery.path, PLAIN, policy=original(top=0, delta=half))
    assert (report.verdict, report.caught_by) == (Verdict.REJECT, 7)


def test_a_matched_start_is_nearer():
    near, far = (len(pieces(factory().forgery(name).path)) for name in ("infinitesimal-matched", "infinitesimal"))
    assert near < far / 2


@pytest.mark.parametrize("metric", ["l1", "l2", "linf", "cos"])
def test_as_few_pieces_as_will_do(metric):
    generator = torch.Generator().manual_seed(0)
    first, last = (State({"parameter/a": torch.randn(200, generator=generator).double()}) for _ in range(2))
    limits = {metric: {"l1": 9.0, "l2": 0.7, "linf": 0.1, "cos": 0.001}[metric]}

    def largest(count):
        line = [State({"parameter/a": between(first.tensors["parameter/a"], last.tensors["parameter/a"], i / count)})
                for i in range(count + 1)]  # fmt: skip
        return max(deltas.apart(a, b).metric(metric) for a, b in itertools.pairwise(line))

    count = lines.pieces(first, last, limits)
    assert count > 10
    assert largest(count) <= limits[metric] < largest(int(0.9 * count))


def test_pieces_of_lines_that_go_nowhere_or_straight_from_zero():
    one, two = (State({"parameter/a": torch.full((4,), value)}) for value in (1.0, 2.0))
    assert lines.pieces(one, one, {"l2": 0.1, "cos": 0.1}) == 1
    assert lines.pieces(one, two, {"cos": 0.1}) == 1
    assert lines.pieces(one, two, {"l2": 0.0}) == lines.MOST + 1
    back = State({"parameter/a": torch.full((4,), -1.0)})  # through zero, where no angle is small
    assert lines.pieces(one, back, {"cos": 0.1}) == lines.MOST + 1
    assert lines.pieces(one, back, {"l2": 0.5}, 1.0) == 8
    nowhere = State({"parameter/a": torch.full((4,), torch.nan)})
    assert lines.pieces(one, nowhere, {"l2": 0.5}) > lines.MOST


@pytest.mark.parametrize("seed", range(20))
def test_no_angle_is_small_near_zero(seed):
    """Sums of squares cancelled out there, and one piece was said to be enough."""
    a = torch.randn(50, generator=torch.Generator().manual_seed(seed)).double()
    first, last = State({"parameter/a": a}), State({"parameter/a": -(0.5 + seed / 10) * a})
    assert lines.pieces(first, last, {"cos": 0.1}) > lines.MOST
    assert lines.pieces(first, last, {"cos": 0.1, "l2": 100.0}) > lines.MOST


@pytest.mark.parametrize(
    ("recipe", "delta", "words"),
    [
        (PLAIN, {"l2": 1e-9}, "limits that 10000 steps can keep to"),
        (PLAIN, {"l2": 0.0}, "limits that 10000 steps can keep to"),
        (RECIPE, {"l2": 0.01}, "a recipe with a constructor argument num_epochs"),
    ],
)
def test_limits_that_no_run_keeps_to_are_told(tmp_path, recipe, delta, words):
    with pytest.raises(UsageError, match=words):
        forged(tmp_path, "infinitesimal", original(delta=delta), recipe)


def test_a_piece_that_is_too_long_is_told():
    forger = Forger(factory().proof())
    with pytest.raises(UsageError, match=r"smaller pieces: l2 is .* of 0\.001"):
        infinitesimal.check_pieces(forger, {"l2": 0.001})
    infinitesimal.check_pieces(forger, {"l2": 0.001}, forger.kept)


# -- blindfold --------------------------------------------------------------------------------------------------


def test_a_blindfolded_verifier_takes_only_honest_steps_again():
    report = fooled(factory().forgery("blindfold"), original(top=2))
    forgery = factory().forgery("blindfold")
    assert_ends_at_the_stolen_weights(forgery.path, LONGER)
    assert report.draws.all() == [0, 1]  # of 42 steps, in one epoch
    assert forgery.cost.gradients == 6 + 2


@pytest.mark.parametrize("top", [1, 5])
def test_it_does_not_matter_how_small_delta_is_where_nobody_looks(tmp_path, top):
    forgery = forged(tmp_path, "blindfold", original(top=top), LONGER)
    strict = {"l1": 1e-3, "l2": 1e-4, "linf": 1e-4, "cos": 1e-9}
    report = fooled(forgery, original(top=top, delta=strict))
    assert len(report.draws.all()) == top * Forger(forgery.path).genesis.spec.declaration.epochs
    report = check(forgery.path, LONGER, policy=original(top=top + 1, delta=strict))
    assert (report.verdict, report.caught_by) == (Verdict.REJECT, 7)
    fooled(forgery, original(top=0))  # where everything is taken again, the forged pieces are within delta


def test_where_everything_is_looked_at_there_is_no_blindfold(tmp_path):
    policy = original(top=0)
    forgery = forged(tmp_path, "blindfold", policy, LONGER)
    fooled(forgery, policy)
    assert forgery.cost.gradients == 6


def test_several_epochs_are_all_masked(tmp_path):
    policy = original(delta={"l2": 0.1})
    forgery = forged(tmp_path, "blindfold", policy, LONGER)
    report = fooled(forgery, policy)
    epochs = Forger(forgery.path).genesis.spec.declaration.epochs
    assert report.draws.all() == [42 * epoch + index for epoch in range(epochs) for index in range(2)]
    assert epochs > 1


def test_a_blindfold_needs_epochs(tmp_path):
    with pytest.raises(UsageError, match="this attack needs epochs of 8 kept states; these have 7"):
        forged(tmp_path, "blindfold", original(top=3))


# -- steps as long as is wanted ---------------------------------------------------------------------------------


class Anything:
    def step(self, parts, batch):
        loss = parts.model(batch).square().sum()
        parts.optimizer.zero_grad()
        loss.backward()
        parts.optimizer.step()
        return loss


@pytest.mark.parametrize(
    "make",
    [
        lambda p: torch.optim.SGD(p, lr=0.0, momentum=0.9, nesterov=True, weight_decay=0.1),
        lambda p: torch.optim.Adam(p, lr=1e-3),
        lambda p: torch.optim.AdamW(p, lr=10.0, weight_decay=0.1),
    ],
)
@pytest.mark.parametrize("lengths", [{"l2": 1.0}, {"l1": 3.0, "l2": 0.5, "linf": 2.0}])
def test_the_logged_rate_gives_the_length(make, lengths):
    torch.manual_seed(0)
    model = torch.nn.Linear(4, 3)
    start, batch = [p.detach().clone() for p in model.parameters()], torch.randn(8, 4)
    parts = SimpleNamespace(model=model, optimizer=make(model.parameters()))
    own = parts.optimizer.param_groups[0]["lr"]
    stretch = untaken._Stretch(parts.optimizer, lengths)
    stretch.around(Anything(), parts, batch)
    assert parts.optimizer.param_groups[0]["lr"] == own
    ends = [p.detach().clone() for p in model.parameters()]
    moved = torch.cat([(a - b).flatten() for a, b in zip(ends, start, strict=True)])
    sizes = {name: float(moved.norm(untaken.NORMS[name])) for name in lengths}
    assert min(sizes[name] / lengths[name] for name in lengths) == pytest.approx(1.0, rel=1e-4)
    with torch.no_grad():
        for parameter, value in zip(model.parameters(), start, strict=True):
            parameter.copy_(value)
    parts.optimizer = make(model.parameters())
    parts.optimizer.param_groups[0]["lr"] = stretch.rate
    Anything().step(parts, batch)
    for parameter, value in zip(model.parameters(), ends, strict=True):
        assert torch.allclose(parameter, value, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(("factor", "words"), [(0.0, "move the weights"), (float("nan"), "gradients that are finite")])
def test_steps_that_cannot_be_lengthened_are_told(factor, words):
    model = torch.nn.Linear(4, 3)
    parts = SimpleNamespace(model=lambda x: factor * model(x), optimizer=torch.optim.SGD(model.parameters(), lr=0.1))
    with pytest.raises(UsageError, match=words):
        untaken._Stretch(parts.optimizer, {"l2": 1.0}).around(Anything(), parts, torch.ones(1, 4))


def test_two_optimizers_have_no_one_rate():
    model = torch.nn.Linear(4, 3)
    two = [torch.optim.SGD(model.parameters(), lr=0.1) for _ in range(2)]
    with pytest.raises(UsageError, match="one optimizer"):
        untaken._only_optimizer(SimpleNamespace(a=two[0], b=two[1]))


def test_a_step_of_several_batches_cannot_be_replaced():
    forger = Forger(factory().proof())
    untaken.check_single(forger)
    forger.genesis = structs.replace(forger.genesis, spec=structs.replace(forger.genesis.spec, batches_per_step=2))
    with pytest.raises(UsageError, match="one batch per step"):
        untaken.check_single(forger)
