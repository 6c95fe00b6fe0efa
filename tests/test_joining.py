"""What joining a stolen run achieves, and drawing a run towards its end; which of it the verification of 2021 sees."""

import itertools

import numpy as np
import pytest
import torch

from factory import PLAIN, RECIPE, STEPS, InProcess, Profile, check, factory, judge, known_key, same_every_time
from pol.attacks import deltas, pulling
from pol.attacks.forger import Forger
from pol.attacks.registry import REGISTRY
from pol.errors import UsageError
from pol.proof.policy import Paper, Policy
from pol.proof.report import Verdict
from pol.prover import record
from references import LONGER


def original(**changes):
    return Policy(name="paper-2021", procedure="paper-2021", paper=Paper(**changes))


def forged(tmp_path, name, target, recipe, policy=None):
    with same_every_time(name):
        return REGISTRY[name].forge(target, tmp_path / "out", known_key(2), recipe, InProcess(), policy=policy)


@pytest.fixture(scope="module")
def long_run(tmp_path_factory):
    """An honest run of 70 intervals."""
    out = tmp_path_factory.mktemp("long") / "honest"
    options = {"every": 1, "settings": {"num_epochs": 10}, "profile": Profile(threads=1), "executor": InProcess()}
    with same_every_time("honest"):
        record(PLAIN, out, key=known_key(1), **options)
    return out


def same(state, other, kinds=("parameter/", "buffer/", "optimizer/")):
    keys = [key for key in other.tensors if key.startswith(kinds)]
    return bool(keys) and all(torch.equal(state.tensors[key], other.tensors[key]) for key in keys)


def sizes(forger):
    return [deltas.apart(forger.states[a], forger.states[b]) for a, b in itertools.pairwise(forger.kept)]


# -- a stolen tail ----------------------------------------------------------------------------------------------


def test_the_tail_is_as_it_was_and_the_way_to_it_one_jump():
    found, target = Forger(factory().forgery("glued").path), Forger(factory().proof())
    assert [same(found.states[step], target.states[step]) for step in found.kept] == [False] * 3 + [True] * 3
    for own, stolen in zip(found.intervals[3:], target.intervals[3:], strict=True):
        assert (own.loss, own.learning_rates, own.schedules) == (stolen.loss, stolen.learning_rates, stolen.schedules)
        assert own.batches != stolen.batches  # under the thief's own key
    assert factory().forgery("glued").cost.gradients == 6 + 6
    failed = [result.index for result in judge("glued").intervals if result.status == "failed"]
    assert failed == [2, 3, 4]  # the tail's batches are not in the order of the thief's seed


def test_what_is_masked_is_far_above_delta_and_nobody_looks():
    forgery = factory().forgery("glued-masked")
    found, target = Forger(forgery.path), Forger(factory().proof(recipe=LONGER))
    joint = next(
        index for index, step in enumerate(found.kept) if step and same(found.states[step], target.states[step])
    )
    assert all(same(found.states[step], target.states[step]) for step in found.kept[joint:])
    assert all(size.linf > 3 * 0.1 for size in sizes(found)[2:joint])
    report = check(forgery.path, LONGER, policy=original())
    assert report.verdict is Verdict.ACCEPT, report.reason()
    assert set(report.draws.top) & set(range(joint)) == {0, 1}
    assert forgery.cost.gradients <= 6 + 2 * 3 * 4  # some lengths are tried
    report = check(forgery.path, LONGER, policy=original(top=0))
    failed = [result.index for result in report.intervals if result.status == "failed"]
    assert (report.verdict, failed) == (Verdict.REJECT, list(range(2, joint)))


def test_a_mask_needs_epochs(tmp_path):
    with pytest.raises(UsageError, match="epochs of 6 kept states; these have 2"):
        forged(tmp_path, "glued-masked", factory().proof(), RECIPE)


def test_a_bridge_takes_as_many_pieces_as_the_limits_ask_for(tmp_path, long_run):
    joints = []
    for number, limit in enumerate((0.1, 0.05)):
        policy = original(top=0, delta={"linf": limit})
        folder = tmp_path / str(number)
        folder.mkdir()
        forgery = forged(folder, "bridged", long_run, PLAIN, policy)
        report = check(forgery.path, PLAIN, policy=policy)
        assert report.verdict is Verdict.ACCEPT, report.reason()
        assert forgery.cost.gradients == 6 + 1
        found, target = Forger(forgery.path), Forger(long_run)
        joined = [same(found.states[step], target.states[step]) for step in found.kept]
        joints.append(joined.index(True))
        assert all(joined[joints[-1] :])
        assert check(forgery.path, PLAIN).caught_by == 4
    assert 10 < joints[0] < joints[1] < 60
    report = check(tmp_path / "0" / "out", PLAIN, policy=original(top=0, delta={"linf": 0.02}))
    assert (report.verdict, report.caught_by) == (Verdict.REJECT, 7)


def test_where_a_run_is_too_short_for_a_bridge_epochs_are_put_before_it():
    found, target = Forger(factory().forgery("bridged").path), Forger(factory().proof(recipe=PLAIN))
    later = found.steps - target.steps
    assert later > 0
    assert later % 21 == 0  # whole epochs of 7 steps, and whole intervals of 3
    assert all(same(found.states[later + step], target.states[step], "parameter/") for step in target.kept)
    order = np.frombuffer(found.order, dtype="<u4").reshape(-1, 28)
    assert all(sorted(epoch) == list(range(28)) for epoch in order)
    with_order = [result.index for result in judge("bridged", policy=original(top=0)).intervals if result.detail]
    assert with_order == []


def test_a_bridge_needs_room(tmp_path):
    with pytest.raises(UsageError, match="a recipe with a constructor argument num_epochs"):
        forged(tmp_path, "bridged", factory().proof(), RECIPE)
    with pytest.raises(UsageError, match="limits that 10000 pieces can keep to"):
        forged(tmp_path, "bridged", factory().proof(recipe=PLAIN), PLAIN, original(delta={"l2": 1e-9}))


# -- a pull -----------------------------------------------------------------------------------------------------


def left(forger, target):
    first, last, aim = forger.states[0], forger.states[forger.steps], target.states[target.steps]
    return deltas.apart(last, aim).l2 / deltas.apart(first, aim).l2


def test_a_projection_ends_at_the_very_weights_and_a_penalty_nearby():
    target = Forger(factory().proof())
    assert left(Forger(factory().forgery("pulled").path), target) == 0
    assert left(Forger(factory().forgery("penalised").path), target) < 0.5
    for name in ("pulled", "penalised"):
        assert factory().forgery(name).cost.gradients == 6 + STEPS


def test_in_many_steps_a_projection_is_within_delta_and_a_penalty_ends_there(tmp_path, long_run):
    target = Forger(long_run)
    pulled = forged(tmp_path, "pulled", long_run, PLAIN)
    report = check(pulled.path, PLAIN, policy=original(top=0))
    assert report.verdict is Verdict.ACCEPT, report.reason()
    assert left(Forger(pulled.path), target) == 0
    (tmp_path / "out").rename(tmp_path / "pulled")
    penalised = forged(tmp_path, "penalised", long_run, PLAIN)
    assert left(Forger(penalised.path), target) < 0.1
    for path in (tmp_path / "pulled", penalised.path):
        report = check(path, PLAIN)
        assert (report.verdict, report.caught_by) == (Verdict.REJECT, 7)
        assert "70 of 70 replayed intervals failed" in report.reason()


@pytest.mark.parametrize("steps", [14, 90, 10_000])
@pytest.mark.parametrize(("momentum", "nesterov"), [(0.0, False), (0.9, False), (0.9, True)])
def test_the_strength_of_a_penalty_leaves_little(steps, momentum, nesterov):
    share = pulling._share(steps, momentum, nesterov)
    way, velocity = 1.0, 0.0
    for _ in range(steps):
        gradient = share * way
        velocity = momentum * velocity + gradient
        way -= gradient + momentum * velocity if nesterov else velocity
    assert abs(way) <= pulling.LEFT
    assert pulling.FIRM <= share <= 1
