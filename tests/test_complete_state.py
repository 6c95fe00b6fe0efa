"""The state is complete: what evolves in a training is in it, piece by piece, and a replay without it ends elsewhere.

The rows are those of the usual list of what a resumed training needs: 1 parameters and buffers, 2 optimizers,
3 schedules, 4 gradient scalers, 5 averages, 6 generators, 7 the position in the data, 8 accumulation, 9 counters,
10 evaluations, 11 what is computed again, 12 how it is computed. For each a training is entered again before every
step from a checkpoint file, and ends bit for bit where it ended at once. Then exactly that piece is put back to what
it was at the start, or left out: the end is another one, or the replay refuses.
"""

import contextlib
import functools
import json
import random

import msgspec
import numpy as np
import pytest
import torch
from torch import nn

from pol import Recipe
from pol.errors import IntegrityError, PolError, ReplayError, UsageError
from pol.messages import Build, Program
from pol.profile import Profile
from pol.proof.report import Verdict
from pol.replay import driver, generators, optimizers, randomness
from pol.replay.engine import Frame, Position, advance
from pol.replay.inprocess import InProcess
from pol.replay.randomness import Streams
from pol.replay.state import State
from test_engine import Machine, Watch, leave, one_thread  # noqa: F401  # the fixture is used by being here
from zoo.tools import ZOO, check, train

CUT = 5
"""The step at which a piece is left out: neither the start nor the end of an epoch."""


@functools.cache
def machine(name):
    return Machine(name)


def at(name, step=CUT):
    """The position before a step, with tensors that may be changed."""
    one = machine(name)
    return leave(one.run(stop=step))


def end(name, start=None, **settings):
    """Digests of the state in which a training ends."""
    return machine(name).run(start, **settings).digests_now()


def entered_before_every_step(name, folder):
    """Enters before every step from a file; every step must do what it did at once. Returns the states' keys."""
    one, seen, keys = machine(name), Watch(), set()
    whole = one.run(observer=seen)
    here = one.run(stop=0)
    for step in range(whole.step):
        alone = Watch()
        position = leave(here, folder)
        keys |= set(position.state.tensors)
        here = one.run(position, step + 1, alone)
        assert (alone.losses, alone.rates, alone.batches, alone.roots) == tuple(
            {step: what[step]} for what in (seen.losses, seen.rates, seen.batches, seen.roots)
        )
    assert here.root_now() == whole.root_now()
    return keys | set(whole.state.tensors)


ALL_OF_OPTIMIZER = ("value/optimizer", "object/optimizer", "optimizer/optimizer")
# Row, piece, training, the beginning of its entries' keys, and whether the weights at the end show it, too.
PIECES = [
    (1, "parameters", "zoo_states.py:Momentum", "parameter/model.0.weight", True),
    (1, "running statistics", "zoo_states.py:Momentum", "buffer/model.1.running_mean", False),
    (1, "batches tracked", "zoo_states.py:Momentum", "buffer/model.1.num_batches_tracked", False),
    (1, "vector of spectral norm", "zoo_evolving.py:SpectralNorm", "buffer/model.0.parametrizations.weight.0.", True),
    (1, "buffers out of state_dict", "zoo_states.py:EvolvingTransient", "transient/model.level", True),
    (1, "buffers that are assigned", "zoo_states.py:IntegerBuffers", "buffer/model.average", True),
    (1, "tied weights", "zoo_states.py:Tied", "parameter/model.down.weight", True),
    (1, "extra state, numbers", "zoo_evolving.py:ExtraState", "value/model.2.0._extra_state", True),
    (1, "extra state, tensors", "zoo_evolving.py:ExtraState", "object/model.0._extra_state", True),
    (2, "momentum", "zoo_states.py:Momentum", "optimizer/optimizer.", True),
    (2, "Adam's moments", "zoo_states.py:Adam", "optimizer/optimizer.", True),
    (2, "factored moments", "zoo_states.py:Adafactor", "optimizer/optimizer.", True),
    (2, "lists of directions", "zoo_states.py:Lbfgs", ALL_OF_OPTIMIZER, True),
    (2, "state under a name", "zoo_evolving.py:StateOfItsOwn", ALL_OF_OPTIMIZER, True),
    (2, "rates changed by hand", "zoo_schedules.py:ByHand", "value/optimizer", True),
    (2, "rates in a tensor", "zoo_evolving.py:TensorRateByHand", "value/optimizer", True),
    (2, "fused", "zoo_evolving.py:Fused", "optimizer/optimizer.", True),
    (2, "foreach", "zoo_evolving.py:Foreach", "optimizer/optimizer.", True),
    (2, "one of two optimizers", "zoo_states.py:Gan", "optimizer/maker_optimizer.", True),
    (3, "plateau", "zoo_schedules.py:Patient", "value/plateau", True),
    (3, "two schedules of one optimizer", "zoo_evolving.py:Swa", "value/scheduler", True),
    (3, "averaging schedule", "zoo_evolving.py:Swa", "value/swa_scheduler", True),
    (4, "scale and growth", "zoo_precision.py:AutocastFloat16", "value/scaler", True),
    (4, "scaler updated after the commit", "zoo_precision.py:ScalerAfterCommit", "value/scaler", True),
    (5, "average", "zoo_states.py:Ema", "parameter/average.module.0.weight", False),
    (5, "counter of an average", "zoo_states.py:Ema", "buffer/average.n_averaged", False),
    (5, "average by hand", "zoo_evolving.py:EmaByHand", "object/average", False),
    (5, "counter that is an int", "zoo_evolving.py:EmaByHand", "value/average", False),
    (9, "tokens, best loss, bad streak", "zoo_evolving.py:Counting", "value/meters", True),
]
STEP_OF = {"value/plateau": 9, "value/scheduler": 9, "value/swa_scheduler": 20}
"""Where there is something to lose only later."""


@pytest.mark.parametrize("name", sorted({name for _, _, name, _, _ in PIECES}))
def test_a_training_entered_before_every_step_from_a_file_is_bit_equal(name, tmp_path):
    keys = entered_before_every_step(name, tmp_path)
    for _, piece, training, begin, _ in PIECES:
        assert training != name or any(key.startswith(begin) for key in keys), f"{piece}: nothing is captured"


@pytest.mark.parametrize(
    ("name", "begin", "shows"), [pytest.param(*row[2:], id=f"row {row[0]}: {row[1]}") for row in PIECES]
)
def test_without_this_piece_the_end_is_another(name, begin, shows):
    """Put back to what it was before step 0."""
    step, wanted = STEP_OF.get(begin, CUT), end(name)
    assert end(name, at(name, step)) == wanted
    cut, fresh = at(name, step), machine(name).run(stop=0).state.tensors
    mine = [key for key in cut.state.tensors if key.startswith(begin)]
    assert mine
    for key in mine:
        cut.state.tensors.pop(key)
    cut.state.tensors.update({key: tensor.detach().clone() for key, tensor in fresh.items() if key.startswith(begin)})
    found = end(name, cut)
    assert found != wanted
    if shows:
        assert [key for key in wanted if key.startswith("parameter/") and wanted[key] != found.get(key)]


@pytest.mark.parametrize(
    ("name", "begin"),
    [
        pytest.param(*row[2:4], id=f"row {row[0]}: {row[1]}")
        for row in PIECES
        if row[3] != ALL_OF_OPTIMIZER and not row[3].startswith("optimizer/")
    ],
)  # fmt: skip
def test_a_checkpoint_without_this_piece_is_refused(name, begin):
    """Left out: optimizer state alone may be absent, since it is before the first update."""
    cut = at(name, STEP_OF.get(begin, CUT))
    for key in [key for key in cut.state.tensors if key.startswith(begin)]:
        cut.state.tensors.pop(key)
    with pytest.raises(IntegrityError, match="missing"):
        end(name, cut)


# --- row 1


def test_row_1_tied_weights_are_stored_once_and_stay_tied():
    arrival = machine("zoo_states.py:Tied").run(at("zoo_states.py:Tied"), CUT + 1)
    assert arrival.declaration.aliases == {"model.up.weight": "model.down.weight"}
    assert "parameter/model.up.weight" not in arrival.state.tensors
    model = arrival.parts.modules["model"]
    assert model["up"].weight is model["down"].weight


def test_row_1_extra_state_is_given_back_and_an_evaluation_leaves_it_alone():
    """Evaluations of that training see inputs a hundred times as large, in training mode."""
    history = machine("zoo_evolving.py:ExtraState").run(stop=CUT).parts.modules["model"][0].history
    assert len(history) == 4
    assert max(history) < 10


# --- row 2


@pytest.mark.parametrize("flag", ["fused", "capturable", "maximize", "differentiable"])
def test_row_2_flags_that_choose_the_arithmetic_are_compared(flag):
    """They are hyperparameters from the build: a training that has others is refused."""
    one = machine("zoo_evolving.py:Foreach")
    assert one.whole.declaration.parts[1].groups[0].hyperparameters["foreach"] is True
    changed = msgspec.to_builtins(one.whole.declaration)
    changed["parts"][1]["groups"][0]["hyperparameters"][flag] = "other"
    frame = Frame(one.frame.streams, msgspec.convert(changed, type(one.whole.declaration)), 1, one.entry.external)
    with pytest.raises(ReplayError, match=f"declared something else than before: .*hyperparameters.{flag}"):
        advance(one.entry.make, frame, Position())


@pytest.mark.parametrize("name", ["TensorRate", "TensorRateByHand"])
def test_row_2_a_rate_in_a_tensor_stays_in_it(name):
    name = f"zoo_evolving.py:{name}"
    group = machine(name).run(at(name), CUT + 1).parts.optimizers["optimizer"].param_groups[0]
    assert isinstance(group["lr"], torch.Tensor)
    assert group["lr"].item() < 0.01


def test_row_2_state_belongs_to_names_not_to_positions():
    """Parameters in another order than they were saved in: every moment still finds its own."""
    name = "zoo_states.py:Adam"
    cut = at(name)
    cut.state.tensors = dict(reversed(cut.state.tensors.items()))
    assert end(name, cut) == end(name)


# --- row 3


@pytest.mark.parametrize("name", ["OneCycle", "OneCycleAdam", "WarmUp", "Sequential", "PerEpoch"])
def test_row_3_counted_schedules(name, tmp_path):
    """How often each was stepped is in the record; with another count the end is another."""
    name = f"zoo_schedules.py:{name}"
    entered_before_every_step(name, tmp_path)
    step = 8
    cut, wanted = at(name, step), end(name)
    assert end(name, cut) == wanted
    fewer = Position(cut.step, cut.state, {part: count - 1 for part, count in cut.counts.items()})
    assert end(name, fewer) != wanted
    with pytest.raises(IntegrityError, match="schedules"):
        end(name, Position(cut.step, cut.state, {}))


# --- row 4


def test_row_4_skipped_steps_leave_weights_and_schedule_alone(tmp_path):
    """The scale really drops, and then grows; the schedule is stepped by the other steps alone."""
    name = "zoo_precision.py:AutocastFloat16"
    train(f"{ZOO}/{name}", tmp_path / "p")
    intervals = [json.loads(line) for line in (tmp_path / "p/log.jsonl").read_text().splitlines()[1:]]
    skipped = [step for one in intervals for step in one["skipped"]]
    assert skipped[0] == 0
    assert 1 < len(skipped) < 6
    assert intervals[-1]["schedules"] == {"schedule": 12 - len(skipped)}
    scales = [scale_after(name, step) for step in range(1, 13)]
    assert scales[0] == 2.0**30
    assert min(scales) < max(scales[len(skipped) :])  # it dropped, and grew again
    report = check(tmp_path / "p", f"{ZOO}/{name}")
    assert report.verdict is Verdict.ACCEPT


def scale_after(name, step):
    return machine(name).run(stop=step).parts.namespace.scaler.get_scale()


def test_row_4_the_scaler_is_taken_after_its_update():
    """The growth counter has moved by the boundary, though update() came after commit()."""
    state = machine("zoo_precision.py:ScalerAfterCommit").run(stop=1).state
    value = json.loads(bytes(state.tensors["value/scaler"].tolist()))
    assert ["_growth_tracker", {"plain": 1}] in value["pairs"]


# --- row 6


class Skipping:
    """Sets generators as the streams say, but leaves one kind as it is."""

    def __init__(self, kind):
        self.kind = kind
        self.load = randomness.load

    def __call__(self, state):
        own = randomness.save()
        self.load(tuple(own[i] if i == self.kind else state[i] for i in range(3)))


@pytest.mark.parametrize("kind", range(3), ids=["python", "numpy", "torch"])
def test_row_6_global_generators(kind, tmp_path, monkeypatch):
    """They are a function of seed and step, and set before each; where one is not, a replay ends elsewhere."""
    name = "zoo_loops.py:Quiet"
    entered_before_every_step(name, tmp_path)
    one = machine(name)
    cut = at(name)
    monkeypatch.setattr(randomness, "load", Skipping(kind))
    random.seed(1)
    np.random.seed(1)
    torch.manual_seed(1)
    assert one.run(cut).digests_now() != end(name)


OWN = ["numpy_0", "numpy_1", "numpy_2", "numpy_3", "numpy_4", "legacy", "python", "noise"]


def test_row_6_attached_generators(tmp_path):
    name = "zoo_evolving.py:AttachedGenerators"
    entered_before_every_step(name, tmp_path)
    assert sorted(machine(name).whole.parts.generators) == sorted(OWN)
    kinds = {part.kind for part in machine(name).whole.declaration.parts if part.name in OWN}
    assert kinds == {"generator"}


@pytest.mark.parametrize("part", OWN)
def test_row_6_an_attached_generator_that_is_not_set(part, monkeypatch):
    name = "zoo_evolving.py:AttachedGenerators"
    one, wanted = machine(name), end(name)
    cut = at(name)
    real = Streams.step
    monkeypatch.setattr(
        Streams, "step", lambda self, step, all_: real(self, step, {k: v for k, v in all_.items() if k != part})
    )
    assert one.run(cut).digests_now() != wanted


@pytest.mark.parametrize("algorithm", sorted(generators.SIZES))
def test_row_6_states_of_generators_follow_from_bytes(algorithm):
    """The whole state: what was drawn before, even half a number, makes no difference."""
    make = {"MT19937": np.random.MT19937}.get(algorithm) or getattr(np.random, algorithm)
    drawn = []
    for seed in (1, 2):
        generator = np.random.Generator(make(seed))
        generator.integers(5, size=seed, dtype=np.uint32)
        generators.put(generator, bytes(range(256)) * 10 if algorithm == "MT19937" else bytes(range(32)))
        drawn.append((generator.integers(2**32, size=3, dtype=np.uint32).tolist(), generator.random(3).tolist()))
    assert drawn[0] == drawn[1]
    saved = generators.save(generator)
    after = generator.random(3).tolist()
    generators.load(generator, saved)
    assert generator.random(3).tolist() == after


# --- row 7


def test_row_7_the_position_in_the_data(tmp_path):
    """Order and position follow from seed and step; entered at another position, other samples are seen."""
    name = "zoo_states.py:Momentum"
    one, wanted = machine(name), end(name)
    seen, elsewhere = Watch(), Watch()
    cut = at(name)
    assert one.run(cut, observer=seen).digests_now() == wanted
    other = one.run(Position(cut.step + 1, cut.state, cut.counts), observer=elsewhere)
    assert other.digests_now() != wanted
    assert seen.batches[CUT + 2] == elsewhere.batches[CUT + 2]  # a position names its batch, whatever came before
    assert seen.batches[CUT] not in elsewhere.batches.values()


@pytest.mark.parametrize("what", ["batches_per_step", "batch_size", "samples", "drop_last"])
def test_row_7_the_layout_of_the_data_is_compared(what):
    one = machine("zoo_loops.py:Accumulating")
    frame, declaration = one.frame, one.frame.declaration
    if what == "batches_per_step":
        frame = Frame(frame.streams, declaration, 3, frame.external)
    else:
        other = not declaration.drop_last if what == "drop_last" else getattr(declaration, what) + 1
        frame = Frame(frame.streams, msgspec.structs.replace(declaration, **{what: other}), 2, frame.external)
    with pytest.raises(
        PolError, match=r"declared something else|every commit must close the same number|after 3 steps"
    ):
        advance(one.entry.make, frame, Position())


# --- row 8


@pytest.mark.parametrize("name", ["Accumulating", "AccumulatingAll", "TwoBatchesAStep", "ZeroedInPlace"])
def test_row_8_states_are_taken_at_updates_only(name, tmp_path):
    """No gradient is in a state; the batches of a step are taken together."""
    name = f"zoo_loops.py:{name}"
    keys = entered_before_every_step(name, tmp_path)
    assert not [key for key in keys if "grad" in key]


@pytest.mark.parametrize(("name", "step"), [("Accumulates", 3), ("AccumulatesInPlace", 7)])
def test_row_8_a_gradient_that_crosses_a_boundary_is_refused(name, step):
    with pytest.raises(ReplayError, match=f"step {step} uses gradients that an earlier step has left"):
        Machine(f"zoo_refused.py:{name}")


def test_row_8_without_that_refusal_a_replay_would_end_elsewhere(monkeypatch):
    monkeypatch.setattr(driver.Leftovers, "updates", lambda *_, **__: None)
    monkeypatch.setattr(driver.Leftovers, "step_ends", lambda *_: None)
    one = Machine("zoo_refused.py:Accumulates")
    assert one.run(leave(one.run(stop=CUT))).digests_now() != one.whole.digests_now()


# --- row 9


def test_row_9_counters_that_are_not_attached_are_refused(tmp_path):
    with pytest.raises(ReplayError, match="cannot be entered again"):
        train(f"{ZOO}/zoo_refused.py:CountsSteps", tmp_path / "p")


# --- row 10


@pytest.mark.parametrize("name", ["zoo_loops.py:Evaluating", "zoo_evolving.py:SwaAside", "zoo_schedules.py:Plateau"])
def test_row_10_evaluations_are_repeated_and_undone(name, tmp_path):
    entered_before_every_step(name, tmp_path)


@pytest.mark.parametrize(("name", "undoes"), [("zoo_loops.py:Evaluating", 28), ("zoo_evolving.py:ExtraState", 12)])
def test_row_10_an_evaluation_that_is_not_set_aside_changes_the_training(name, undoes, monkeypatch):
    quiet = end(name)
    assert machine(name).whole.asides == undoes
    monkeypatch.setattr(driver, "undisturbed", lambda *_, **__: contextlib.nullcontext())
    found = None
    with contextlib.suppress(ReplayError):  # modes that an evaluation leaves behind are refused
        found = end(name)
    assert found != quiet


class Backward(Recipe):
    """Evaluates with a backward pass between its own backward pass and its update."""

    num_epochs, batch_size = 1, 2
    aside = True

    def data(self):
        return [{"x": np.float32([i, 1])} for i in range(6)]

    def build(self):
        model = nn.Linear(2, 1)
        return {"model": model, "optimizer": torch.optim.SGD(model.parameters(), lr=0.1)}

    def train(self, run):
        parts = run.attach(**self.build())
        for _ in run.epochs(1):
            for batch in run.batches(self.data(), size=2):
                loss = parts.model(batch["x"]).square().mean()
                parts.optimizer.zero_grad()
                loss.backward()
                if self.aside:
                    with run.aside():
                        parts.model(torch.ones(1, 2)).sum().backward()
                        assert parts.model.bias.grad.item() == 1.0
                parts.optimizer.step()
                run.commit(loss=loss)


def test_row_10_gradients_of_an_evaluation_are_its_own():
    def run(aside):
        Streams(bytes(32)).init()
        recipe = Backward()
        recipe.aside = aside
        return advance(lambda: recipe, Frame(Streams(bytes(32))), Position()).digests_now()

    assert run(aside=True) == run(aside=False)


# --- rows 11 and 12: how it is computed is code and flags, so digests and the declaration hold it


@pytest.mark.parametrize(
    "name",
    [
        "zoo_precision.py:Checkpointed", "zoo_precision.py:CheckpointedReentrant", "zoo_precision.py:Routed",
        "zoo_precision.py:AutocastBfloat16", "zoo_precision.py:Flash", "zoo_precision.py:Math",
        "zoo_precision.py:ChannelsLast", "zoo_evolving.py:Clipped", "zoo_evolving.py:Sequences",
        "zoo_evolving.py:Transformed",
    ],
)  # fmt: skip
def test_rows_11_and_12_are_entered_before_every_step(name, tmp_path):
    entered_before_every_step(name, tmp_path)


CHANGES = [
    (11, "Checkpointed", "keep_generators", False),
    (12, "Clipped", "clip", 100.0),
    (12, "Clipped", "smoothing", 0.0),
    (12, "AutocastBfloat16", "dtype", torch.float16),
    (12, "Flash", "backend", torch.nn.attention.SDPBackend.MATH),
    (12, "ChannelsLast", "memory_format", torch.contiguous_format),
]


@pytest.mark.parametrize(
    ("recipe", "attribute", "value"), [pytest.param(*row[1:], id=f"row {row[0]}: {row[2]}") for row in CHANGES]
)
def test_rows_11_and_12_another_way_of_computing_ends_elsewhere(recipe, attribute, value, monkeypatch):
    file = "zoo_evolving.py" if recipe == "Clipped" else "zoo_precision.py"
    name = f"{file}:{recipe}"
    one, wanted = machine(name), end(name)
    cut = at(name)
    monkeypatch.setattr(one.entry._recipe, attribute, value)
    assert one.run(cut).digests_now() != wanted


def test_row_12_decay_groups_are_compared(monkeypatch):
    one = machine("zoo_evolving.py:Clipped")
    cut = at("zoo_evolving.py:Clipped")
    monkeypatch.setattr(one.entry._recipe, "decay", 0.06)
    with pytest.raises(ReplayError, match=r"declared something else than before: .*weight_decay"):
        one.run(cut)


def test_row_12_the_precision_of_products_is_in_the_profile():
    """It is a flag of the process, so it is set before each job; the genesis holds the profile."""
    program = Program(
        reference=f"{ZOO}/zoo_states.py:Momentum", configuration={}, seed="00" * 32,
        profile=Profile(threads=1, matmul="medium"),
    )  # fmt: skip
    before = torch.get_float32_matmul_precision()
    try:
        assert [type(event).__name__ for event in InProcess().run(Build(program=program))] == ["Built"]
        assert torch.get_float32_matmul_precision() == "medium"
    finally:
        torch.set_float32_matmul_precision(before)


def test_row_12_strides_are_restored(tmp_path, monkeypatch):
    """A file has none."""
    name = "zoo_precision.py:ChannelsLast"
    cut = leave(machine(name).run(stop=CUT), tmp_path)
    arrival = machine(name).run(cut, CUT + 1)
    (weight, *_), optimizer = arrival.parts.modules["model"].parameters(), arrival.parts.optimizers["optimizer"]
    strides = {tensor.stride() for tensor in (weight, *(optimizer.state[weight][k] for k in ("exp_avg", "exp_avg_sq")))}
    assert strides == {(18, 1, 6, 2)}  # channels innermost, which the file does not say
    monkeypatch.setattr(optimizers, "_like", lambda parameter, saved: saved.clone())
    plain = machine(name).run(cut, CUT + 1).parts
    (weight, *_) = plain.modules["model"].parameters()
    assert plain.optimizers["optimizer"].state[weight]["exp_avg"].stride() == (18, 9, 3, 1)


def test_row_12_another_source_is_another_training(tmp_path):
    """The recipe's digest covers what no declaration does: clipping, loss, autocast, kernels."""
    (tmp_path / "one.py").write_text(SOURCE.format(clip="0.5"))
    train(f"{tmp_path / 'one.py'}:One", tmp_path / "p")
    (tmp_path / "one.py").write_text(SOURCE.format(clip="0.6"))
    report = check(tmp_path / "p", f"{tmp_path / 'one.py'}:One")
    assert report.verdict is Verdict.INCONCLUSIVE
    assert "module one differs from the registered one" in report.reason()


SOURCE = """
import numpy as np
import torch

import pol


class One(pol.Recipe):
    num_epochs, batch_size = 2, 2

    def data(self):
        return [{{"x": np.float32([i, 1])}} for i in range(6)]

    def build(self):
        model = torch.nn.Linear(2, 1)
        return {{"model": model, "optimizer": torch.optim.SGD(model.parameters(), lr=0.1)}}

    def step(self, parts, batch):
        loss = parts.model(batch["x"]).square().mean()
        parts.optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(parts.model.parameters(), {clip})
        parts.optimizer.step()
        return loss
"""


# --- several devices and ranks are not in this version, and said so


def test_rows_1_and_6_other_devices_are_refused():
    class Elsewhere(Backward):
        def build(self):
            parts = super().build()
            parts["model"].register_buffer("far", torch.zeros(1, device="meta"))
            return parts

    with pytest.raises(ReplayError, match=r"model\.far is on meta .*: this version records dense CPU tensors"):
        advance(Elsewhere, Frame(Streams(bytes(32))), Position())
    with pytest.raises(msgspec.ValidationError, match="Invalid enum value 'cuda'"):
        msgspec.convert({"device": "cuda", "threads": 1}, Profile)


def test_rows_6_and_7_several_processes_are_refused(monkeypatch):
    monkeypatch.setattr(torch.distributed, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.distributed, "get_world_size", lambda: 4)
    with pytest.raises(UsageError, match="runs in 4 processes: this version records the training of one"):
        advance(Backward, Frame(Streams(bytes(32))), Position())


def test_row_1_a_tensor_of_several_processes_is_refused():
    class Spread(torch.Tensor):
        pass

    Spread.__module__ = "torch.distributed.tensor"
    with pytest.raises(ReplayError, match="w is spread over several processes"):
        State({"parameter/w": torch.zeros(1).as_subclass(Spread)}).root()


# --- the order in which pieces are put back

CALLS = []


class Noting:
    """Notes when it is put back."""

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)

    def load_state_dict(self, state):
        CALLS.append(type(self).__name__)
        super().load_state_dict(state)


class Plateau(Noting, torch.optim.lr_scheduler.ReduceLROnPlateau):
    pass


class Scaler(Noting, torch.amp.GradScaler):
    pass


class Kept:
    def state_dict(self):
        return {}

    def load_state_dict(self, state):
        pass


class Ema(Noting, Kept):
    pass


class Layer(nn.Linear):
    def get_extra_state(self):
        return 1

    def set_extra_state(self, state):
        CALLS.append("Model")


class Ordered(Backward):
    """Attached in the wrong order."""

    aside = False

    def build(self):
        model = Layer(2, 1)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        return {
            "noise": torch.Generator(), "ema": Ema(), "scaler": Scaler("cpu"), "plateau": Plateau(optimizer),
            "optimizer": optimizer, "model": model,
        }  # fmt: skip


def test_pieces_are_put_back_in_order(monkeypatch):
    """Model, optimizer, schedule, scaler, average; then the generators, and the first fetch."""
    start = advance(Ordered, Frame(Streams(bytes(32))), Position(), stop=1)
    CALLS.clear()
    for owner, method, name in (
        (optimizers.AttachedOptimizer, "restore", "Optimizer"),
        (generators, "put", "Generator"),
        (randomness.Streams, "_set", "Generators"),
    ):
        real = getattr(owner, method)

        def noted(*args, real=real, name=name, **options):
            CALLS.append(name)
            return real(*args, **options)

        monkeypatch.setattr(owner, method, noted)
    fetched = Watch()
    fetched.item = lambda index, item: CALLS.append("Fetch")
    advance(Ordered, Frame(Streams(bytes(32)), start.declaration, 1), leave(start), 2, fetched)
    once = ["Model", "Optimizer", "Plateau", "Scaler", "Ema"]
    # At attach, for a program that looks at its parts; and at the first request for a batch, after all that is its own.
    assert CALLS[: 2 * len(once)] == once + once
    rest = [call for call in CALLS[2 * len(once) :] if call != "Generators"]
    assert rest[:2] == ["Generator", "Fetch"]
    assert CALLS[2 * len(once) : 2 * len(once) + 2] == ["Generator", "Generators"]
