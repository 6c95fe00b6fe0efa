"""A splice really lands on the stolen model, bit for bit, and everything but its jump is taken again as recorded."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from factory import EVERY, PLAIN, RECIPE, check, factory, judge, known_key, same_every_time
from pol.attacks.ranges import Range, exactly, halved, number, position
from pol.attacks.registry import REGISTRY
from pol.errors import UsageError
from pol.policies import load
from pol.profile import Profile
from pol.proof.report import Verdict
from pol.prover import record
from pol.replay.inprocess import InProcess

DIGITS = "pol.recipes.digits:DigitsCNN"
ADAM = PLAIN.replace("plain.py:Plain", "adam.py:Adam")


def forged(tmp_path, name, recipe, every=EVERY, settings=None, policy=None):
    """A target, and the forgery of it."""
    target = tmp_path / "target"
    with same_every_time("target"):
        record(recipe, target, key=known_key(1), every=every, keep=1, settings=settings or {},
               profile=Profile(threads=1), executor=InProcess())  # fmt: skip
    with same_every_time("splice"):
        made = REGISTRY[name].forge(target, tmp_path / "out", known_key(2), recipe, InProcess(), policy=policy)
    return target, made


def model(proof, back=0):
    """Parameters and buffers of the last checkpoint, or of one before it."""
    found = load_file(sorted((proof / "checkpoints").iterdir())[-1 - back])
    return {key: tensor for key, tensor in found.items() if key.startswith(("parameter/", "buffer/"))}


def bits(tensor):
    return tensor.reshape(-1).view(torch.uint8).tolist()


def missed(target, proof):
    """Numbers that are not bit for bit those of the target."""
    found, aim = model(proof), model(target)
    assert found.keys() == aim.keys()
    return sum(int((position(found[k]) != position(t)).sum()) for k, t in aim.items() if t.is_floating_point())


def failed(report):
    return [result.index for result in report.intervals if result.status == "failed"]


@pytest.mark.parametrize(
    ("recipe", "every", "settings"),
    [
        (RECIPE, EVERY, {}),
        (PLAIN, EVERY, {}),
        (DIGITS, 10, {"num_epochs": 1}),
    ],
)
def test_it_ends_at_the_stolen_model_bit_for_bit_and_the_jump_alone_fails(tmp_path, recipe, every, settings):
    target, made = forged(tmp_path, "spliced", recipe, every, settings)
    assert missed(target, made.path) == 0
    assert all(bits(tensor) == bits(model(target)[key]) for key, tensor in model(made.path).items())
    report = check(made.path, recipe, policy=load("exact-full"))
    last = len(report.intervals) - 1
    assert (report.verdict, report.caught_by, failed(report)) == (Verdict.REJECT, 7, [last - 1])
    assert report.intervals[last].status == "passed"  # it is honest, and ends in stolen weights


def test_where_it_lands_is_no_matter_of_the_hash_seed(tmp_path):
    """The search drew in the order of a set: under some seeds of Python's it ended one number off."""
    program = """
import hashlib, sys
from pathlib import Path
from test_splicing import EVERY, PLAIN, forged, missed
target, made = forged(Path(sys.argv[1]), "spliced", PLAIN, EVERY, {})
last = sorted((made.path / "checkpoints").iterdir())[-2:]
print(missed(target, made.path), *(hashlib.sha256(path.read_bytes()).hexdigest() for path in last))
"""
    found = set()
    for seed in ("4", "5"):
        folder = tmp_path / seed
        folder.mkdir()
        # This folder first: a recipe's folder that another test left in the path may hold a module of the same name.
        path = os.pathsep.join([str(Path(__file__).parent), *sys.path])
        environment = os.environ | {"PYTHONHASHSEED": seed, "PYTHONPATH": path}
        command = [sys.executable, "-c", program, str(folder)]
        done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        found.add(done.stdout)
    assert len(found) == 1
    assert found.pop().startswith("0 ")


@pytest.mark.slow
def test_all_weights_land_over_ten_steps_where_rates_are_low(tmp_path):
    target, made = forged(tmp_path, "spliced-interval", DIGITS, 10, {"num_epochs": 2})
    aim, found = model(target), model(made.path)
    assert all(bits(found[key]) == bits(tensor) for key, tensor in aim.items() if key.startswith("parameter/"))
    assert missed(target, made.path) <= 96 // 8  # of 96 running statistics
    report = check(made.path, DIGITS, policy=load("exact-full"))
    assert failed(report) == [4]
    assert report.intervals[5].status == "passed"


def test_it_costs_little_more_than_the_honest_run():
    cost = factory().forgery("spliced").cost
    assert 14 + 6 < cost.gradients <= 14 + 6 + 20


def test_without_momentum_nearly_all_weights_land(tmp_path):
    target, made = forged(tmp_path, "spliced", PLAIN, settings={"momentum": 0.0})
    assert 0 < missed(target, made.path) < 515 // 20
    assert failed(check(made.path, PLAIN)) == [12]


def test_with_longer_intervals_nearly_all_numbers_land():
    target, path = factory().proof(), factory().forgery("spliced-interval").path
    assert missed(target, path) <= 4
    for key, tensor in model(target).items():
        assert torch.allclose(tensor, model(path)[key], rtol=0, atol=1e-7)


def test_momentum_alone_throws_honest_weights_at_the_stolen_ones(monkeypatch):
    target, path = factory().proof(), factory().forgery("spliced-momentum").path
    numbers = sum(tensor.numel() for key, tensor in model(target).items() if tensor.is_floating_point())
    assert 0 < missed(target, path) < numbers / 2
    for key, tensor in model(target).items():
        assert torch.allclose(tensor, model(path)[key], rtol=0, atol=1e-6)
    report = judge("spliced-momentum", rule="tolerance")
    deviation = report.intervals[12].deviation
    assert (failed(report), deviation.relative) == ([12], 0.0)  # of the weights: they are honest before the last step
    assert "momentum_buffer by most" in report.reason()


@pytest.mark.slow
def test_hidden_among_many_intervals_it_is_met_nevertheless(tmp_path):
    """Documented: the largest update of its twentieth of the run is replayed for certain."""
    policy = load("exact")
    target, made = forged(tmp_path, "spliced-hidden", PLAIN, 1, {"num_epochs": 30}, policy)
    assert missed(target, made.path) == 0
    report = check(made.path, PLAIN, policy=policy)
    assert (report.verdict, report.caught_by) == (Verdict.REJECT, 7)
    assert len(report.intervals) < report.draws.intervals  # it was a sample


@pytest.mark.parametrize("name", ["spliced", "retraced"])
def test_other_optimizers_than_sgd_are_refused(tmp_path, name):
    with pytest.raises(UsageError, match="one optimizer, torch's SGD"):
        forged(tmp_path, name, ADAM)


# -- ranges -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32, torch.float64])
def test_places_are_in_the_order_of_numbers_and_lead_back(dtype):
    drawn = torch.randn(500, generator=torch.Generator().manual_seed(0), dtype=torch.float64).to(dtype)
    places = position(drawn)
    assert number(places, dtype).equal(drawn)
    assert drawn[places.argsort()].equal(drawn.sort().values)
    assert (number(position(drawn) + 1, dtype) > drawn).all()
    assert position(torch.tensor([0.0, -0.0], dtype=dtype)).tolist() == [0, 0]


@pytest.mark.parametrize("near", [None, 64])
def test_a_range_has_all_numbers_that_round_to_one_and_no_other(near):
    start = torch.rand(300, generator=torch.Generator().manual_seed(0))
    aim = start * 0.9 + 0.1

    def off(values):
        return {"x": values["x"] * 0.9 + 0.1 < aim}, {"x": values["x"] * 0.9 + 0.1 > aim}

    found = halved(off, {"x": start}, near)
    assert not found.empty()["x"].any()
    for places, outside in ((found.low["x"], -1), (found.high["x"], 1)):
        assert (number(places, start.dtype) * 0.9 + 0.1).equal(aim)
        assert (number(places + outside, start.dtype) * 0.9 + 0.1 != aim).all()
    middle = position(found.middle({"x": start})["x"])
    assert ((found.low["x"] <= middle) & (middle <= found.high["x"])).all()


def test_where_no_number_will_do_a_range_is_empty():
    like = {"x": torch.tensor([1.0, 2.0])}

    def off(values):  # 2 is jumped over
        return {"x": values["x"] < 2.0}, {"x": values["x"] >= torch.tensor([2.5, 2.0])}

    found = halved(off, like)
    assert found.empty()["x"].tolist() == [False, True]
    assert not found.closed().empty()["x"].any()
    assert not exactly(like).empty()["x"].any()
    assert Range().middle({}) == {}
