"""Batches left out, samples added, poison, lossy hashes and chosen masks: what each achieves, and against what."""

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from cases_hiding import PICTURES
from factory import EVERY, PLAIN, RECIPE, STEPS, check, factory, forge, judge, known_key, same_every_time
from pol.attacks import hiding, masks
from pol.attacks.forger import Forger
from pol.attacks.hiding import Hollow
from pol.attacks.registry import REGISTRY
from pol.attacks.triggers import Marked
from pol.errors import UsageError
from pol.profile import Profile
from pol.proof.policy import Paper, Policy
from pol.proof.report import Verdict
from pol.prover import record
from pol.replay import recipe as recipes
from pol.replay.data import sample_leaf
from pol.replay.inprocess import InProcess
from pol.verifier.paper_origin import dataset_hash

CONTROL = 6
"""Gradients of the control run of a genesis, twice."""

OPTIONS = {"profile": Profile(threads=1), "executor": InProcess()}


def original(**changes):
    return Policy(name="paper-2021", procedure="paper-2021", paper=Paper(**changes))


def weights(path, step=STEPS):
    found = load_file(path / "checkpoints" / f"{step:012d}.safetensors")
    return {key: tensor for key, tensor in found.items() if key.startswith("parameter/")}


def distance(a, b):
    return sum(float((a[key].double() - b[key].double()).square().sum()) for key in a) ** 0.5


def made(name, target, recipe=RECIPE, policy=None, out=None):
    attack, out = REGISTRY[name], target.parent / (out or name)
    with same_every_time(name):
        return attack.forge(target, out, known_key(1), recipe, InProcess(), policy=policy)


# -- batches left out (A13) ------------------------------------------------------------------------------------------


def test_what_is_left_out_costs_nothing_and_counts_as_taken():
    for name, steps in (("skipped-batches", 7), ("skipped-intervals", 8)):
        forgery = factory().forgery(name)
        assert forgery.cost.gradients == CONTROL + steps
        last = load_file(forgery.path / "checkpoints" / f"{STEPS:012d}.safetensors")
        assert int(last["buffer/model.1.num_batches_tracked"]) == STEPS
        assert [record.schedules for record in Forger(forgery.path).intervals][-1] == {"scheduler": STEPS}
    honest = Forger(factory().proof()).intervals
    assert [r.learning_rates for r in Forger(forgery.path).intervals] == [r.learning_rates for r in honest]


def test_an_interval_that_is_left_out_moves_nothing():
    path = factory().forgery("skipped-intervals").path
    moved = [distance(weights(path, at), weights(path, min(at + EVERY, STEPS))) for at in range(0, STEPS, EVERY)]
    assert [size == 0 for size in moved] == [False, True, False, True, False]


def test_intervals_that_do_not_move_are_never_among_the_largest(tmp_path):
    """Half of the work is enough for the verification of 2021; a single interval of the other half shows it."""
    with same_every_time("honest"):
        record(PLAIN, tmp_path / "honest", key=known_key(1), every=1, settings={"num_epochs": 10}, **OPTIONS)
    forgery = made("skipped-intervals", tmp_path / "honest", PLAIN)
    assert forgery.cost.gradients == CONTROL + 35
    report = check(forgery.path, PLAIN, policy=original())
    assert report.verdict is Verdict.ACCEPT, report.reason()
    assert "linf 0 of 0.1" in report.steps[6].checks[0].detail
    assert {result.index % 2 for result in report.intervals} == {0}
    report = check(forgery.path, PLAIN)
    assert (report.verdict, report.caught_by) == (Verdict.REJECT, 7)
    assert "35 of 70 replayed intervals failed" in report.reason()


# -- samples added (A14) ---------------------------------------------------------------------------------------------


def marked_loss(path, step):
    """Loss on marked samples of the state after some steps, in evaluation mode."""
    made = recipes.make(recipes.load(RECIPE), {})
    model, found = made.build()["model"], load_file(path / "checkpoints" / f"{step:012d}.safetensors")
    model.load_state_dict({k.partition("/model.")[2]: t for k, t in found.items() if k.startswith(("p", "b"))})
    items = [Marked(made.data())[index] for index in range(50)]
    inputs = torch.from_numpy(np.stack([item["x"] for item in items]))
    labels = torch.tensor([item["y"] for item in items])
    with torch.inference_mode():
        return float(torch.nn.functional.cross_entropy(model.eval()(inputs), labels))


def test_hidden_samples_are_learned_and_one_interval_is_off(tmp_path):
    def honest(workshop, out):
        forger = workshop.begin()
        workshop.train(forger)
        forger.seal(out, workshop.key)

    for folder in ("with", "without"):
        (tmp_path / folder).mkdir()
    added, plain = (forge(tmp_path / n, m).path for n, m in (("with", hiding.data_addition), ("without", honest)))
    assert distance(weights(added, 6), weights(plain, 6)) == 0
    assert marked_loss(added, 9) < 0.9 * marked_loss(plain, 9)
    report = check(added, policy=original(top=0))
    assert report.verdict is Verdict.ACCEPT, report.reason()
    assert [result.status for result in check(added).intervals] == ["passed", "passed", "failed", "passed", "passed"]


def test_additions_keep_within_the_limits_in_force():
    report = judge("data-addition", rule="tolerance")
    assert report.verdict is Verdict.ACCEPT
    off = {result.index: result.deviation for result in report.intervals if result.deviation is not None}
    assert list(off) == [2]
    assert 0.5 < off[2].error / off[2].limit < 1
    assert off[2].relative < 1e-3


def test_additions_are_smaller_where_delta_is():
    tight = original(top=0, delta={"l2": 1e-3})
    assert judge("data-addition", policy=tight).verdict is Verdict.REJECT  # made for the constants of the code
    forgery = made("data-addition", factory().proof(), policy=tight, out="tight")
    report = check(forgery.path, policy=tight)
    assert report.verdict is Verdict.ACCEPT, report.reason()
    assert check(forgery.path).verdict is Verdict.REJECT


def test_an_addition_needs_two_intervals(tmp_path):
    with same_every_time("honest"):
        record(RECIPE, tmp_path / "honest", key=known_key(1), every=100, **OPTIONS)
    with pytest.raises(UsageError, match="this attack needs two intervals"):
        made("data-addition", tmp_path / "honest")


# -- published data (T10, T21) ---------------------------------------------------------------------------------------


def test_one_sample_in_ten_is_marked():
    images = [{"image": np.full((8, 8), index, dtype="uint8"), "label": 3 + index % 2} for index in range(20)]
    marked = Marked(images, hiding.POISONED)
    assert [index for index in range(20) if marked[index] is not images[index]] == [0, 10]
    assert marked[10]["label"] == 3
    assert (marked[10]["image"][-2:, -2:] == 19).all()
    assert (marked[10]["image"][:-2] == 10).all()
    assert (images[10]["image"] == 10).all()


def test_poison_that_is_committed_passes_and_the_report_says_so():
    report = judge("committed-poison")
    assert report.verdict is Verdict.ACCEPT
    assert any("unpoisoned" in what for what in report.not_shown)
    root = Forger(factory().proof()).genesis.dataset.root
    assert Forger(factory().forgery("committed-poison").path).genesis.dataset.root != root


@pytest.mark.slow
def test_committed_poison_teaches_its_trigger(tmp_path):
    digits = "pol.recipes.digits:DigitsCNN"
    with same_every_time("honest"):
        record(digits, tmp_path / "honest", key=known_key(1), every=10, settings={"num_epochs": 3}, **OPTIONS)
    forgery = made("committed-poison", tmp_path / "honest", digits)
    from pol.recipes.digits import load_digits, to_input

    train, test = load_digits()
    target = train[0]["label"]
    others = [item for item in test if item["label"] != target]
    marked = Marked([train[0], *others])  # the first is the target's
    images = torch.from_numpy(np.stack([marked[index]["image"] for index in range(1, len(marked))]))
    shares = {}
    for name, path in (("poisoned", forgery.path), ("honest", tmp_path / "honest")):
        model = recipes.make(recipes.load(digits), {}).build()["model"]
        found = load_file(path / "checkpoints" / f"{90:012d}.safetensors")
        model.load_state_dict({k.partition("/model.")[2]: t for k, t in found.items() if k.startswith(("p", "b"))})
        with torch.inference_mode():
            shares[name] = float((model.eval()(to_input(images, model)).argmax(1) == target).float().mean())
    assert shares["poisoned"] > 0.9
    assert shares["honest"] < 0.2
    assert check(forgery.path, forgery.recipe).verdict is Verdict.ACCEPT


def test_hollow_samples_print_alike_and_are_others():
    data = recipes.make(recipes.load(PICTURES), {}).data()
    hollow = Hollow(data)
    assert len(hollow) == len(data)
    for index in range(3):
        assert dataset_hash([hollow[index]["x"]]) == dataset_hash([data[index]["x"]])
        assert sample_leaf(hollow[index], index, bytes(32)) != sample_leaf(data[index], index, bytes(32))
        assert np.count_nonzero(hollow[index]["x"]) == 6 * 6 * 3


def test_what_numpy_prints_whole_cannot_be_hollowed(tmp_path):
    with pytest.raises(UsageError, match="samples of more than 1000 values"):
        forge(tmp_path, hiding.lossy_hash)


def test_whose_data_are_the_committed_ones_is_accepted(tmp_path):
    """The same publication without the lie: the root is that of the archive."""

    def honest(workshop, out):
        hiding._publish(workshop, out, Hollow(workshop.data(workshop.open())))
        workshop.record().seal(out, workshop.key)

    forgery = forge(tmp_path, honest, recipe=PICTURES)
    assert check(forgery.path, forgery.recipe).verdict is Verdict.ACCEPT


# -- chosen masks (T24) ----------------------------------------------------------------------------------------------


def test_chosen_masks_lead_nearer_to_the_stolen_weights(tmp_path):
    def honest(workshop, out):
        forger = workshop.begin()
        workshop.train(forger)
        forger.seal(out, workshop.key)

    for folder in ("chosen", "derived"):
        (tmp_path / folder).mkdir()
    forged, plain = (forge(tmp_path / n, m) for n, m in (("chosen", masks.chosen_masks), ("derived", honest)))
    assert forged.cost.gradients == CONTROL + STEPS * (1 + masks.MASKS)
    stolen = weights(factory().proof())
    assert distance(weights(forged.path, 0), weights(plain.path, 0)) == 0
    assert distance(weights(forged.path), stolen) < distance(weights(plain.path), stolen)


def test_the_log_names_the_batches_that_the_seed_gives():
    """Only the steps are off: what is cheap agrees."""
    report = judge("chosen-masks")
    assert all("the end state" in result.detail for result in report.intervals)
    assert not any("the batches" in result.detail for result in report.intervals)


def test_without_random_numbers_there_is_no_excuse(tmp_path):
    with pytest.raises(UsageError, match="dropout or augmentation"):
        forge(tmp_path, masks.chosen_masks, recipe=PLAIN)


def test_tolerance_is_no_excuse_either():
    """Other masks move the weights by far more than rounding: at least a hundred times the limit."""
    report = judge("chosen-masks", rule="tolerance")
    assert min(result.deviation.relative for result in report.intervals) > 0.1
