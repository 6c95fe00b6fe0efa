"""What errors of moments do later: never more than is counted, and a forgery that only this count sees."""

from types import SimpleNamespace

import pytest
import torch
from msgspec import structs
from safetensors.torch import save_file

from factory import PLAIN, TOLERANCE, check, decision, forge
from pol.checkpoint import Checkpoint
from pol.declaration import Declaration, Group, Part
from pol.errors import IntegrityError
from pol.interval import Interval, Rates
from pol.merkle import Root
from pol.proof.policy import Bounds, Limits
from pol.proof.report import Verdict
from pol.statetree import StateRoot
from pol.verifier.carrying import KNOWN, Carrying, unbounded
from pol.verifier.hyperparameters import momenta

SIZE, BEFORE, AFTER = 200, 12, 60


def optimizer(name, parameter):
    options = {
        "SGD": (torch.optim.SGD, {"lr": 0.1, "momentum": 0.9}),
        "Nesterov": (torch.optim.SGD, {"lr": 0.1, "momentum": 0.95, "nesterov": True}),
        "plain SGD": (torch.optim.SGD, {"lr": 0.1}),
        "Adam": (torch.optim.Adam, {"lr": 1e-3}),
        "AdamW": (torch.optim.AdamW, {"lr": 1e-3, "betas": (0.8, 0.95), "weight_decay": 0.1}),
    }
    kind, given = options[name]
    return kind([parameter], **given)


def schedule(name, of):
    if name == "falling":
        return torch.optim.lr_scheduler.LambdaLR(of, lambda step: 1 / (1 + step))
    return torch.optim.lr_scheduler.LambdaLR(of, lambda step: min(1.0, (step + 1) / 20))


def run(name, rates, *, wrong=None):
    """(state after BEFORE steps, parameter at the end, rates of all steps, group) with a moment changed in between."""
    torch.manual_seed(0)
    parameter = torch.nn.Parameter(torch.randn(SIZE))
    of = optimizer(name, parameter)
    falls, taken, state = schedule(rates, of), [], None
    scale = torch.logspace(-3, 0, SIZE)  # gradients of many sizes, each of which stays what it is
    for step in range(BEFORE + AFTER):
        if step == BEFORE:
            for key, change in (wrong or {}).items():
                of.state[parameter][key].mul_(change)
            state = {key: value.clone() for key, value in of.state[parameter].items()}
        parameter.grad = scale * (1 + 0.3 * torch.randn(SIZE))
        taken.append(of.param_groups[0]["lr"])
        of.step()
        falls.step()
    return state, parameter.detach().clone(), taken, of


def length(tmp_path, name, rates, wrong):
    """(counted, real): how far wrong moments move the parameter in the steps after."""
    state, honest, taken, of = run(name, rates)
    forged, end, _, _ = run(name, rates, wrong=wrong)
    for label, found in (("replayed", state), ("recorded", forged)):
        kept = {f"optimizer/o.model.w.{key}": value for key, value in found.items() if value is not None}
        save_file({"parameter/model.w": honest, **kept}, tmp_path / f"{label}.safetensors")
    group = Group(parameters=["model.w"], hyperparameters={"eps": {"float": repr(of.param_groups[0].get("eps", 0.0))}})
    kind = f"{type(of).__module__}.{type(of).__qualname__}"
    part = Part(name="o", kind="optimizer", type=kind, groups=[group], dynamic=["lr"])
    assert part.type in KNOWN
    carrying = Carrying(declared([part]), [recorded(taken)])
    kept = [[value for key in ("momentum", "betas") for value in several(of.param_groups[0].get(key))]]
    ends = (Checkpoint.at(tmp_path / f"{label}.safetensors") for label in ("replayed", "recorded"))
    return carrying.length("parameter/model.w", BEFORE, kept, *ends), float((end - honest).double().norm())


def several(value):
    return [] if value is None else list(value) if isinstance(value, tuple) else [value]


def declared(parts):
    return Declaration(
        parts=parts, entries=[], aliases={}, epochs=1, samples=100, batch_size=1, drop_last=False, external=[]
    )


def recorded(rates):
    root = Root(size=1, digest="sha256:" + "0" * 64)
    return Interval(
        start=0, stop=len(rates), root=StateRoot(state=root, weights=root), batches="blake3:" + "0" * 64,
        loss="0.0", learning_rates=[Rates(steps=1, values=[repr(rate)]) for rate in rates], skipped=[], schedules={},
    )  # fmt: skip


CASES = [
    ("SGD", {"momentum_buffer": 1.001}),
    ("Nesterov", {"momentum_buffer": 0.999}),
    ("Adam", {"exp_avg": 1.001}),
    ("Adam", {"exp_avg_sq": 0.999}),
    ("Adam", {"exp_avg_sq": 1.001}),
    ("AdamW", {"exp_avg": 0.999, "exp_avg_sq": 0.999}),
]


@pytest.mark.parametrize("rates", ["falling", "rising"])
@pytest.mark.parametrize(("name", "wrong"), CASES)
def test_what_a_wrong_moment_does_is_counted(tmp_path, name, wrong, rates):
    counted, real = length(tmp_path, name, rates, wrong)
    assert 0 < real <= 1.001 * counted < 10 * real  # for SGD it is exact, but for rounding


def test_an_optimizer_without_moments_carries_nothing(tmp_path):
    assert length(tmp_path, "plain SGD", "falling", {}) == (0.0, 0.0)


def test_one_vanished_element_counts_as_what_it_does(tmp_path):
    """Adam divides by it: shrunk to nothing, it moves one weight far, though the whole tensor is hardly off."""
    change = torch.ones(SIZE)
    change[0] = 1e-12
    counted, real = length(tmp_path, "Adam", "rising", {"exp_avg_sq": change})
    assert 1e-2 < real <= counted


@pytest.mark.parametrize("value", [float("nan"), -1.0])
def test_a_moment_that_is_no_size_is_no_number(tmp_path, value):
    counted, _ = length(tmp_path, "Adam", "falling", {"exp_avg_sq": value})
    assert counted != counted


def test_the_last_step_carries_nothing_on(tmp_path):
    part = Part(name="o", kind="optimizer", type=KNOWN[0], groups=[Group(["model.w"], {})], dynamic=["lr"])
    assert Carrying(declared([part]), [recorded([0.1])]).length("parameter/model.w", 1, [[0.9]], None, None) == 0


def test_rates_of_other_groups_are_refused():
    part = Part(name="o", kind="optimizer", type=KNOWN[0], groups=[], dynamic=["lr"])
    with pytest.raises(IntegrityError, match="1 learning rates are recorded for 0 parameter groups"):
        Carrying(declared([part]), [recorded([0.1])])


def test_what_is_not_known_is_said():
    assert "torch.optim.rmsprop" in unbounded(Part(name="o", kind="optimizer", type="torch.optim.rmsprop.RMSprop"))
    amsgrad = Group(["w"], {"amsgrad": True})
    assert "never forget" in unbounded(Part(name="o", kind="optimizer", type=KNOWN[1], groups=[amsgrad]))
    assert unbounded(Part(name="o", kind="optimizer", type=KNOWN[1], groups=[Group(["w"], {"amsgrad": False})])) == ""


# -- as forgeries -----------------------------------------------------------------------------------------------------

LOOSE = structs.replace(TOLERANCE, limits=Limits(relative=0.1, absolute=1.0, drift=1e9))
ADAM = PLAIN.replace("plain.py:Plain", "adam.py:Adam")


def pushed(key, factor):
    """Honest steps, but for one moment after the second interval, moved by a share that its own limit allows."""

    def make(workshop, out):
        forger = workshop.open()
        spec = forger.genesis.spec
        workshop.train(forger, 0, 2 * spec.every)
        state = forger.states[2 * spec.every].tensors
        state[key] = factor(state[key], forger.states[spec.every].tensors[key])
        workshop.train(forger, 2 * spec.every, spec.steps)
        forger.seal(out, workshop.key)

    return make


def towards(end, start):
    way = torch.ones_like(end)
    return end + way / way.norm() * 0.09 * (end - start).norm()


def without_one(end, start):
    """The smallest element of those that count for nothing in the norm of the tensor: gone."""
    end = end.clone()
    end.view(-1)[end.argmin()] = 0
    return end


@pytest.mark.parametrize(
    ("recipe", "key", "factor"),
    [
        (PLAIN, "optimizer/optimizer.model.2.weight.momentum_buffer", towards),
        (ADAM, "optimizer/optimizer.model.4.weight.exp_avg_sq", without_one),
    ],
)
def test_a_moment_within_its_own_limits_is_stopped_by_what_it_does_later(tmp_path, monkeypatch, recipe, key, factor):
    path = forge(tmp_path, pushed(key, factor), rule="tolerance", recipe=recipe).path
    report = check(path, recipe, policy=LOOSE)
    assert decision(report) == (Verdict.REJECT, 7), report.reason()
    assert "interval 1 (steps 3–6)" in report.reason()
    assert key.removeprefix("optimizer/optimizer.").rpartition(".")[0] in report.reason()
    monkeypatch.setattr(Carrying, "length", lambda *_: 0.0)
    report = check(path, recipe, policy=LOOSE)
    assert report.verdict is Verdict.ACCEPT, report.reason()


def test_momenta_of_replays_are_bounded_too(tmp_path):
    """A schedule may change them, and no record holds them."""
    path = forge(tmp_path, pushed("parameter/model.2.bias", lambda end, _: end), rule="tolerance", recipe=PLAIN).path
    assert check(path, PLAIN, policy=LOOSE).verdict is Verdict.ACCEPT
    tight = structs.replace(LOOSE, bounds=structs.replace(LOOSE.bounds, momentum=0.5))
    assert decision(check(path, PLAIN, policy=tight)) == (Verdict.REJECT, 4)  # the spec says it, too
    found = list(momenta(SimpleNamespace(policy=tight, momenta={0: [[0.4]], 1: [[0.9]]})))
    assert [(one.status, "interval 1, parameter group 0" in one.detail) for one in found] == [("failed", True)]
    assert [one.status for one in momenta(SimpleNamespace(policy=tight, momenta={0: [[0.4]]}))] == ["passed"]
    assert list(momenta(SimpleNamespace(policy=structs.replace(LOOSE, bounds=Bounds()), momenta={0: [[0.9]]}))) == []
