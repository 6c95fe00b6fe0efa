"""Properties of the engine: where a program is entered, and who watches, makes no difference."""

import contextlib
import functools
import random
import warnings

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from pol.errors import IntegrityError, ReplayError, UsageError
from pol.messages import Program
from pol.profile import Profile
from pol.replay import randomness
from pol.replay.engine import Frame, Position, advance
from pol.replay.entry import Entry
from pol.replay.randomness import Streams
from pol.replay.state import State
from zoo.tools import ZOO

PROGRAMS = {
    "zoo_states.py:Momentum": 12,
    "zoo_states.py:LateGradient": 12,
    "zoo_states.py:Gan": 12,
    "zoo_states.py:Skipping": 12,
    "zoo_states.py:Ema": 12,
    "zoo_states.py:Generators": 12,
    "zoo_states.py:Lbfgs": 12,
    "zoo_schedules.py:OneCycle": 12,
    "zoo_schedules.py:TopOfNextEpochs": 12,
    "zoo_schedules.py:PlateauAndDecay": 24,
    "zoo_schedules.py:ByHandBesideASchedule": 12,
    "zoo_loops.py:Accumulating": 9,
    "zoo_loops.py:TopOfEpoch": 12,
    "zoo_loops.py:WarmsUp": 12,
    "zoo_loops.py:CustomCollate": 12,
    "zoo_loops.py:GlobalRandomness": 12,
}
"""Recipes and how many steps they take."""


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


class Machine:
    """One program under one seed, entered wherever it is asked to."""

    def __init__(self, name, seed=bytes(32), **configuration):
        self.name = name
        program = Program(
            reference=f"{ZOO}/{name}", configuration=configuration, seed=seed.hex(), profile=Profile(threads=1)
        )
        self.entry = Entry(program)
        self.frame = Frame(self.entry.streams, external=self.entry.external)
        self.whole = self.run()
        self.frame = Frame(self.entry.streams, self.whole.declaration, self.whole.batches_per_step, self.entry.external)

    def run(self, start=None, stop=None, observer=None):
        return advance(self.entry.make, self.frame, start or Position(), stop, observer)


@functools.cache
def machine(name, seed=bytes(32)):
    return Machine(name, seed)


def leave(arrival, folder=None):
    """The position that an arrival leaves, with a state of its own or from a checkpoint file."""
    if folder is None:
        return Position(
            arrival.step, State({k: v.detach().clone() for k, v in arrival.state.tensors.items()}), arrival.counts
        )
    arrival.state.save(folder / "state.safetensors")
    return Position(arrival.step, State.load(folder / "state.safetensors"), arrival.counts)


class Watch:
    """Notes everything that an observer is told."""

    def __init__(self):
        self.batches, self.losses, self.rates, self.items, self.roots, self.counts = {}, {}, {}, {}, {}, {}

    def batch(self, step, batch, chosen):
        self.batches.setdefault(step, []).append(repr(batch))

    def item(self, index, item):
        self.items[index] = repr(item)

    def closed(self, step, loss, rates, take, counts, momenta):
        self.losses[step], self.rates[step], self.counts[step] = loss, rates, counts
        self.roots[step] = take().root()


# --- entered again


@pytest.mark.parametrize("name", sorted(PROGRAMS))
def test_programs_take_the_steps_that_are_written_here(name):
    whole = machine(name).whole
    assert (whole.step, whole.finished) == (PROGRAMS[name], True)


@given(data=st.data(), name=st.sampled_from(sorted(PROGRAMS)))
@settings(max_examples=100, deadline=None)
def test_steps_may_be_taken_in_pieces(data, name):
    """advance(a + b) == advance(advance(a), b), bit for bit, for the state and for the schedules."""
    total = PROGRAMS[name]
    first = data.draw(st.integers(0, total - 1), label="a")
    second = data.draw(st.integers(1, total - first), label="b")
    one = machine(name)
    at_once = one.run(stop=first + second)
    in_pieces = one.run(leave(one.run(stop=first)), first + second)
    assert at_once.step == in_pieces.step == first + second
    assert at_once.digests_now() == in_pieces.digests_now()
    assert (at_once.root_now(), at_once.counts) == (in_pieces.root_now(), in_pieces.counts)


@pytest.mark.parametrize("name", ["zoo_states.py:Momentum", "zoo_schedules.py:PlateauAndDecay"])
def test_every_step_alone_through_a_file(name, tmp_path):
    """The whole training, entered before each step from a checkpoint file, gives what one entry gives."""
    one, seen = machine(name), Watch()
    whole = one.run(observer=seen)
    here = one.run(stop=0)
    for step in range(PROGRAMS[name]):
        alone = Watch()
        here = one.run(leave(here, tmp_path), step + 1, alone)
        assert alone.losses == {step: seen.losses[step]}
        assert alone.rates == {step: seen.rates[step]}
        assert alone.batches == {step: seen.batches[step]}
        assert alone.roots == {step: seen.roots[step]}
    assert here.root_now() == whole.root_now()


def test_nothing_outside_matters():
    """Where the global generators stand, and gradients and modes of an earlier entry, change nothing."""
    one = machine("zoo_states.py:Momentum")
    before = one.run(stop=5).root_now()
    random.seed(1)
    np.random.seed(2)
    torch.manual_seed(3)
    assert one.run(stop=5).root_now() == before


def test_another_seed_is_another_training():
    name = "zoo_states.py:Momentum"
    roots = {
        machine(name, bytes([seed]) * 32).run(stop=stop).root_now().state.digest for seed in (0, 1) for stop in (0, 3)
    }
    assert len(roots) == 4


def test_a_watched_training_is_the_same():
    one = machine("zoo_loops.py:GlobalRandomness")
    assert one.run(observer=Watch()).root_now() == one.whole.root_now()


def test_batches_of_an_epoch_are_a_permutation_of_the_samples():
    one = machine("zoo_states.py:Momentum")
    orders = []
    for epoch in range(2):
        seen = []
        for batch in range(6):
            indices = one.whole.loader.indices(epoch, batch)
            assert len(indices) == (4 if batch < 5 else 2)
            seen += indices
        assert sorted(seen) == list(range(22))
        orders.append(seen)
    assert orders[0] != orders[1]
    assert orders[0] != list(range(22))


def test_dropping_the_last_batch_keeps_the_order():
    dropped, kept = machine("zoo_loops.py:DropLast"), machine("zoo_states.py:Momentum")
    assert dropped.whole.step == 10
    assert [dropped.whole.loader.indices(1, b) for b in range(5)] == [kept.whole.loader.indices(1, b) for b in range(5)]


@pytest.mark.parametrize("step", range(9))
def test_len_of_batches_is_what_iterating_gives(step):
    """The usual way to close the last accumulated step of an epoch: `number == len(batches)`."""
    one = machine("zoo_loops.py:Accumulating")  # three steps an epoch, of 2, 2 and 1 batches
    seen = Watch()
    one.run(leave(one.run(stop=step)) if step else None, observer=seen)
    assert {s: len(batches) for s, batches in seen.batches.items()} == {
        s: (1 if s % 3 == 2 else 2) for s in range(step, 9)
    }


def test_a_program_sees_its_own_step_and_epoch():
    seen = []

    class Steps(Watch):
        def batch(self, step, batch, chosen):
            seen.append(step)

    one = machine("zoo_states.py:Momentum")
    one.run(leave(one.run(stop=7)), observer=Steps())
    assert seen == [7, 8, 9, 10, 11]


def test_what_state_dict_leaves_out_is_state_but_no_weight():
    kinds = {
        key.rpartition(".")[2]: key.partition("/")[0]
        for key in machine("zoo_states.py:NonPersistent").whole.state.tensors
    }
    assert (kinds["mask"], kinds["scale"]) == ("transient", "buffer")
    kinds = {
        key.rpartition(".")[2]: key.partition("/")[0] for key in machine("zoo_states.py:CausalMask").whole.state.tensors
    }
    assert (kinds["mask"], kinds["scale"]) == ("buffer", "transient")


def test_tied_tensors_are_stored_once():
    tied = machine("zoo_states.py:Tied").whole
    assert tied.declaration.aliases == {"model.up.weight": "model.down.weight"}
    assert "parameter/model.down.weight" in tied.state.tensors
    assert not any("model.up.weight" in key for key in tied.state.tensors)


# --- aside


def test_an_aside_changes_nothing():
    """The same training with and without evaluations that draw, switch modes and move buffers."""
    with_asides = machine("zoo_loops.py:Evaluating")
    assert with_asides.whole.asides == 28

    quiet = Machine("zoo_loops.py:Quiet")
    assert quiet.whole.asides == 0
    assert quiet.whole.root_now() == with_asides.whole.root_now()


def test_an_aside_keeps_tensors_and_ties():
    """Buffers are the same tensors afterwards, whatever was assigned, added or deleted inside."""
    from types import SimpleNamespace

    from torch import nn

    from pol.replay.aside import undisturbed

    model = nn.ModuleDict({"a": nn.BatchNorm1d(2), "b": nn.BatchNorm1d(2)})
    model["b"].running_mean = model["a"].running_mean
    model["a"].register_buffer("none", None)
    model["b"].eval()
    generators = {"g": torch.Generator().manual_seed(3)}
    parts = SimpleNamespace(modules={"model": model}, generators=generators, extras=[])
    before = dict(model.named_buffers(remove_duplicate=False))
    values = {name: buffer.clone() for name, buffer in before.items()}
    versions = {name: buffer._version for name, buffer in before.items()}
    state, drawn = randomness.save(), torch.Generator().manual_seed(3).get_state()
    with contextlib.suppress(ZeroDivisionError), undisturbed(parts):  # also when it ends by an error
        assert model["a"].running_mean is model["b"].running_mean
        model["a"].running_mean += 1
        assert torch.equal(model["b"].running_mean, torch.ones(2))
        model["a"].running_var = torch.zeros(2)
        model["a"].register_buffer("new", torch.zeros(1))
        del model["b"].num_batches_tracked
        model.train()
        torch.rand(2, generator=parts.generators["g"])
        torch.rand(3), np.random.rand(), random.random()
        raise ZeroDivisionError
    after = dict(model.named_buffers(remove_duplicate=False))
    assert after.keys() == before.keys()
    assert all(after[name] is before[name] and torch.equal(after[name], values[name]) for name in before)
    assert {name: buffer._version for name, buffer in after.items()} == versions
    assert [model["a"].training, model["b"].training] == [True, False]
    assert torch.equal(parts.generators["g"].get_state(), drawn)
    assert randomness.unchanged(state)


# --- streams


def draws():
    return random.random(), np.random.rand(), torch.rand(()).item()


def test_streams_are_a_function_of_seed_and_step():
    one = Streams(bytes(32))
    generator = torch.Generator()
    seen = set()
    for step in (0, 1, 2**40, 1, 0):
        one.step(step, {"g": generator})
        first = (*draws(), torch.rand((), generator=generator).item())
        draws()
        Streams(bytes(32)).step(step, {"g": generator})
        assert (*draws(), torch.rand((), generator=generator).item()) == first
        seen.add(first)
    assert len(seen) == 3
    values = [value for numbers in seen for value in numbers]
    assert len(set(values)) == 12
    for stream in (lambda: one.init(), lambda: one.sample(0, 0, 0), lambda: one.collate(0, 0)):
        stream()
        seen.add(draws())
    Streams(b"\1" * 32).step(0, {})
    seen.add(draws())
    assert len(seen) == 7


def test_streams_have_known_answers():
    """Part of format v1: these numbers may never change."""
    one = Streams(bytes(range(32)))
    one.init()
    assert (random.getrandbits(32), int(np.random.randint(2**31)), torch.randint(2**27, ()).item()) == INIT
    generator = torch.Generator()
    one.step(7, {"noise": generator})
    assert (random.getrandbits(32), int(np.random.randint(2**31)), torch.randint(2**27, ()).item()) == STEP
    assert torch.randint(2**27, (), generator=generator).item() == NOISE
    one.sample(1, 2, 3)
    assert (random.getrandbits(32), int(np.random.randint(2**31)), torch.randint(2**27, ()).item()) == SAMPLE
    one.collate(1, 2)
    assert (random.getrandbits(32), int(np.random.randint(2**31)), torch.randint(2**27, ()).item()) == COLLATE
    assert one.sample_rng(1, 2, 3).integers(2**31, size=2).tolist() == TRANSFORM
    assert one.sample_rng(0, 0, 0).integers(2**31) != TRANSFORM[0]
    assert one.sample_rng(1, 2, 3).integers(2**31, size=2).tolist() == TRANSFORM  # not one draw further


INIT = (614646369, 1614536779, 15713987)
STEP = (2793549641, 1478855093, 109630998)
NOISE = 5362270
SAMPLE = (658620990, 246657975, 123859466)
COLLATE = (2384635756, 909558712, 1894652)
TRANSFORM = [1249156921, 581444451]


def test_full_states_are_set():
    """All 624 words of each generator come from the stream: the three give the raw numbers of one twister."""
    data = Streams(bytes(32))._stream.draw(3 * 4 * 624, "step", 5)
    words = [np.frombuffer(data[i * 2496 : (i + 1) * 2496], dtype="<u4") for i in range(3)]
    raw = []
    for state in words:
        twister = np.random.MT19937()
        twister.state = {"bit_generator": "MT19937", "state": {"key": state, "pos": 624}}
        raw.append(twister.random_raw(1300).tolist())
    Streams(bytes(32)).step(5, {})
    assert [random.getrandbits(32) for _ in range(1300)] == raw[0]
    assert np.random.randint(0, 2**32, 1300, dtype=np.uint32).tolist() == raw[1]
    assert torch.empty(1300, dtype=torch.int64).random_(0, 2**27).tolist() == [word % 2**27 for word in raw[2]]


def test_generators_are_saved_and_loaded():
    Streams(bytes(32)).step(0, {})
    random.gauss(0, 1), np.random.normal(), torch.randn(1)  # leave half a pair of normal numbers behind
    state = randomness.save()
    assert randomness.unchanged(state)
    first = [random.gauss(0, 1), np.random.normal(), torch.randn(()).item()]
    for move in (random.random, np.random.rand, lambda: torch.rand(1)):
        randomness.load(state)
        assert randomness.unchanged(state)
        move()
        assert not randomness.unchanged(state)
    randomness.load(state)
    assert [random.gauss(0, 1), np.random.normal(), torch.randn(()).item()] == first


# --- states that do not fit


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t: t.pop("parameter/model.0.weight"), r"model\.0\.weight: missing"),
        (lambda t: t.update({"parameter/model.0.weight": torch.zeros(1)}), r"of another dtype or shape"),
        (lambda t: t.update({"parameter/model.0.weight": t["parameter/model.0.weight"].double()}), r"another dtype"),
        (lambda t: t.update({"parameter/other": torch.zeros(1)}), "parameter/other: the recipe has no such thing"),
        (lambda t: t.update({"optimizer/optimizer.nothing.x": torch.zeros(1)}), "has no parameter 'nothing'"),
        (lambda t: t.update({"value/optimizer": torch.zeros(1)}), "value/optimizer is missing"),
        (lambda t: t.update({"value/optimizer": json_bytes(b"{}")}), "not what this optimizer writes"),
        (lambda t: t.update({"value/optimizer": json_bytes(b"{ }")}), "not canonical"),
        (lambda t: t.update({"value/optimizer": json_bytes(b'{"groups":[{"lr":1}],"state":[]}')}), "declared static"),
        (lambda t: t.update({"value/model": json_bytes(b"{}")}), "the recipe has no such thing"),
    ],
)
def test_a_state_that_does_not_fit_is_refused(change, message):
    one = machine("zoo_states.py:Momentum")
    position = leave(one.run(stop=3))
    change(position.state.tensors)
    with pytest.raises(IntegrityError, match=message):
        one.run(position, 4)


def json_bytes(data):
    return torch.frombuffer(bytearray(data), dtype=torch.uint8)


@pytest.mark.parametrize(
    "value", [b"{}", b'{"plain":1,"x":2}', b'{"tensor":"nowhere"}', b'{"what":1}', b'{"plain":{"float":"1"}}']
)
def test_the_state_of_an_object_that_does_not_fit_is_refused(value):
    one = machine("zoo_states.py:Skipping")
    position = leave(one.run(stop=3))
    position.state.tensors["value/scaler"] = json_bytes(value)
    with pytest.raises(Exception, match="attached object's state") as caught:
        one.run(position, 4)
    assert type(caught.value).__module__ == "pol.errors"


def test_counts_of_other_schedules_are_refused():
    one = machine("zoo_schedules.py:OneCycle")
    position = leave(one.run(stop=3))
    with pytest.raises(IntegrityError, match=r"schedules \['other'\] in the record, \['scheduler'\] in the program"):
        one.run(Position(3, position.state, {"other": 3}), 4)


def test_a_schedule_is_never_loaded():
    """Its count alone decides: a state with another count goes on with other rates."""
    one, rates = machine("zoo_schedules.py:OneCycle"), []
    position = leave(one.run(stop=3))
    for count in (3, 5):
        seen = Watch()
        one.run(Position(3, position.state, {"scheduler": count}), 4, seen)
        rates.append(seen.rates[3])
    assert rates[0] == one_cycle_rate(3)
    assert rates[1] == one_cycle_rate(5)


def one_cycle_rate(step):
    seen = Watch()
    machine("zoo_schedules.py:OneCycle").run(stop=step + 1, observer=seen)
    return seen.rates[step]


def test_another_declaration_is_refused():
    one, other = machine("zoo_states.py:Momentum"), machine("zoo_states.py:Nesterov")
    frame = Frame(one.entry.streams, other.whole.declaration, 1, one.entry.external)
    with pytest.raises(ReplayError, match=r"declared something else than before: declaration\.parts\[1\]\.groups"):
        advance(one.entry.make, frame, Position(), 1)


def test_errors_of_the_program_pass_through():
    class Failing:
        def train(self, run):
            raise KeyError("of the user")

    with pytest.raises(KeyError, match="of the user"):
        advance(Failing, Frame(Streams(bytes(32))), Position(), 0)


def test_no_exception_handler_of_the_program_stops_an_arrival():
    one = machine("zoo_states.py:Momentum")

    class Swallowing(type(one.entry.make())):
        def train(self, run):
            try:
                super().train(run)
            except Exception as error:
                raise AssertionError from error

    arrival = advance(Swallowing, one.frame, Position(), 2)
    assert (arrival.step, arrival.finished) == (2, False)


def test_schedules_may_be_stepped_without_a_warning():
    """Stepping a schedule before the optimizer is what entering again does; torch would warn the user."""
    one = machine("zoo_schedules.py:OneCycle")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        one.run(leave(one.run(stop=6)), 7)


def test_an_epoch_begun_twice_is_refused():
    class Again:
        def train(self, run):
            model = torch.nn.Linear(1, 1)
            run.attach(model=model, optimizer=torch.optim.SGD(model.parameters(), lr=0.1))
            for _ in run.epochs(2):
                batches = run.batches([{"x": 1.0}] * 4, size=2)
                assert len(batches) == 2
                for _ in range(2):
                    for _ in batches:
                        run.commit(loss=0.0)

    with pytest.raises(UsageError, match="epoch 0 begins after 2 steps, not after 0"):
        advance(Again, Frame(Streams(bytes(32))), Position())
