"""Recordings of large tensors: stored once, packed, and hashed again only where they may have changed."""

import shutil
import threading
import weakref
from unittest import mock

import msgspec
import pytest
import torch

from pol import canonical, checkpoint, policies
from pol.checkpoint import checkpoint_root, read_entries, read_header
from pol.errors import ReplayError, StoreError
from pol.messages import Recorded, Train
from pol.proof.attestation import MAX_JOURNAL, Journal
from pol.proof.genesis import read_genesis
from pol.proof.log import parse_log, root_after
from pol.proof.report import Verdict
from pol.release import write_model
from pol.replay import digests, jobs, writer
from pol.replay.engine import Frame, Position, advance
from pol.replay.entry import Entry
from pol.replay.frozen import Bases
from pol.replay.inprocess import InProcess
from pol.replay.parts import Parts
from pol.replay.state import State
from pol.replay.tensors import content_digest
from pol.responder import regenerate
from pol.store import GENESIS, JOURNAL, LOG, ProofDirectory, checkpoint_path
from pol.verifier import authenticate
from pol.verifier.bind import model_entries
from pol.verifier.case import Case
from test_resume import Cut, Killed
from zoo.tools import ZOO, check, train

BACKBONE, AVERAGED, LATE, SHUFFLED, THAWED, BOTH = (
    f"{ZOO / 'zoo_large.py'}:{name}" for name in ("Backbone", "Averaged", "Late", "Shuffled", "Thawed", "Both")
)
FROZEN = "parameter/model.0.weight"


@pytest.fixture(scope="module")
def backbone(tmp_path_factory):
    out = tmp_path_factory.mktemp("large") / "p"
    train(BACKBONE, out, every=2, keep=2)
    return out


def files(proof):
    return {int(path.stem): path for path in sorted((proof / "checkpoints").iterdir())}


def test_what_stays_is_in_the_first_file_alone(backbone):
    store = ProofDirectory(backbone)
    for step in files(backbone):
        slots = {slot.entry.key: slot for slot in read_entries(store, checkpoint_path(step))}
        assert slots[FROZEN].file == (None if step == 0 else checkpoint_path(0))
        assert slots["parameter/model.2.weight"].file is None
        assert slots["parameter/model.2.weight"].packed
    assert check(backbone, BACKBONE).verdict is Verdict.ACCEPT


def test_no_header_is_parsed_twice(backbone):
    """A file can name one entry of each earlier one: their headers would be parsed as often as there are files."""
    store, parsed = ProofDirectory(backbone), []
    alone = {step: read_entries(store, checkpoint_path(step)) for step in files(backbone)}

    def noting(where, name):
        parsed.append(name)
        return read_header(where, name)

    found = Case(store=store, policy=policies.load("exact"), model=None, nonce=b"", progress=lambda *_: None)
    with mock.patch.object(checkpoint, "read_header", noting):
        list(authenticate.envelopes(found))
        list(authenticate.contents(found))
    assert parsed == [checkpoint_path(step) for step in files(backbone)]
    assert found.checkpoints == alone


def test_what_is_named_counts_for_the_root(backbone):
    store, log = ProofDirectory(backbone), parse_log((backbone / LOG).read_bytes())
    spec = read_genesis((backbone / GENESIS).read_bytes()).spec
    for step, path in files(backbone).items():
        assert checkpoint_root(store, step, read_entries(store, checkpoint_path(step))) == root_after(log, spec, step)
        assert State.load(path).root() == root_after(log, spec, step)


def test_the_model_of_a_proof_that_names_an_earlier_file(backbone, tmp_path):
    write_model(backbone, tmp_path / "model.safetensors")
    found, last = model_entries(tmp_path / "model.safetensors"), State.load(files(backbone)[12])
    assert found["0.weight"][2] == content_digest(last.tensors[FROZEN])
    assert check(backbone, BACKBONE, model=tmp_path / "model.safetensors").verdict is Verdict.ACCEPT


def test_a_state_is_answered_whole(backbone, tmp_path):
    """In a folder of openings nothing may be somewhere else."""
    regenerate(backbone, tmp_path / "o", recipe=BACKBONE, steps=[4, 6])
    for step in (4, 6):
        slots = read_header(ProofDirectory(tmp_path / "o"), checkpoint_path(step))
        assert all(slot.held is None for slot in slots)
        assert State.load(tmp_path / "o" / checkpoint_path(step)).tensors.keys() >= {FROZEN}


def test_a_recording_that_is_taken_up_again_names_no_file_that_is_gone(tmp_path):
    with pytest.raises(Killed):
        train(BACKBONE, tmp_path / "p", every=2, keep=1, executor=Cut(4))
    train(BACKBONE, tmp_path / "p", every=2, keep=1, resume=True)
    assert check(tmp_path / "p", BACKBONE).verdict is Verdict.ACCEPT
    assert State.load(files(tmp_path / "p")[12]).tensors.keys() >= {FROZEN}


def test_the_state_that_a_recording_is_taken_up_with_is_let_go_of(tmp_path):
    with pytest.raises(Killed):
        train(BACKBONE, tmp_path / "p", every=2, keep=1, executor=Cut(4))
    loaded, alive = [], []
    begin, save = jobs.position_of, writer.save_atomically

    def noting(segment):
        position = begin(segment)
        loaded.extend(map(weakref.ref, position.state.tensors.values()))
        return position

    def looking(*given, **options):
        alive.append(sum(tensor() is not None for tensor in loaded))
        save(*given, **options)

    with mock.patch.object(jobs, "position_of", noting), mock.patch.object(writer, "save_atomically", looking):
        train(BACKBONE, tmp_path / "p", every=2, keep=1, resume=True)
    assert len(loaded) > 4
    assert alive == [0] * 4


@pytest.mark.parametrize("step", [0, 4, 12])
def test_without_the_file_that_holds_it_nothing_is_accepted(backbone, tmp_path, step):
    shutil.copytree(backbone, tmp_path / "p")
    files(tmp_path / "p")[step].unlink()
    assert check(tmp_path / "p", BACKBONE).verdict is Verdict.REJECT


@pytest.mark.parametrize("policy", ["exact", "paper-2021"])
def test_what_unfolds_to_more_than_a_verifier_reads_is_not_unfolded(backbone, policy):
    proof = ProofDirectory(backbone)
    stored = sum(proof.files().values())
    content = sum(
        slot.entry.num_bytes for step in files(backbone) for slot in read_entries(proof, checkpoint_path(step))
    )
    assert stored < content - 100_000
    asked = policies.load(policy)
    found = {most: check(backbone, BACKBONE, policy=msgspec.structs.replace(asked, max_bytes=most))
             for most in (content, content - 1)}  # fmt: skip
    assert found[content].verdict is Verdict.ACCEPT
    assert found[content - 1].verdict is Verdict.REJECT
    assert "more than the policy reads" in found[content - 1].reason()


def counted(recipe, out, **options):
    """Record, and count how often contents of entries that are looked at were hashed in the training."""
    hashed = []

    def noting(tensor):
        hashed.append(tensor.nbytes)
        return content_digest(tensor)

    with mock.patch.object(digests, "content_digest", noting):
        train(recipe, out, **options)
    return sum(size >= digests.LARGE for size in hashed)


def test_what_cannot_have_changed_is_not_hashed_again(tmp_path):
    """Of 12 boundaries: one when it is first seen, three that tell that it stays, the last, where a state is kept."""
    frozen = counted(BACKBONE, tmp_path / "p", every=1, keep=100)
    with mock.patch.object(digests, "LOOKS", 100):
        always = counted(BACKBONE, tmp_path / "q", every=1, keep=100)
    assert always - frozen == 12 - 1 - digests.LOOKS - 1
    assert check(tmp_path / "p", BACKBONE).verdict is Verdict.ACCEPT


@pytest.mark.parametrize("recipe", [AVERAGED, SHUFFLED])
def test_what_torch_does_not_count_is_noticed_in_time(tmp_path, recipe):
    train(recipe, tmp_path / "p", every=1, keep=4)
    assert check(tmp_path / "p", recipe).verdict is Verdict.ACCEPT


def test_what_torch_does_not_count_late_stops_the_recording_and_resuming_mends_it(tmp_path):
    with pytest.raises(ReplayError, match=r"parameter average.weight was changed in a way that torch does not count"):
        train(LATE, tmp_path / "p", every=1, keep=4)
    assert max(files(tmp_path / "p")) == 4  # the steps after it are lost
    train(LATE, tmp_path / "p", every=1, keep=4, resume=True)
    assert check(tmp_path / "p", LATE).verdict is Verdict.ACCEPT


@pytest.mark.parametrize(
    ("recipe", "keep", "resumes"), [(THAWED, 3, []), (THAWED, 4, [8]), (BOTH, 5, [5]), (BOTH, 12, [0])]
)
def test_what_was_counted_on_and_is_written_is_recorded_again(tmp_path, recipe, keep, resumes):
    """Nobody can see any more whether it had been the same; so the steps since the last kept state are taken again."""
    train(recipe, tmp_path / "p", every=1, keep=keep)
    assert check(tmp_path / "p", recipe).verdict is Verdict.ACCEPT
    data = (tmp_path / "p" / JOURNAL).read_bytes()
    assert canonical.decode(data, Journal, what=JOURNAL, limit=MAX_JOURNAL).resumes == resumes


def test_a_stale_digest_would_not_be_sealed(tmp_path):
    """What the check at kept states is for: without it the log would hold a root of a state that never was."""
    original = digests.Digests._content

    def never(self, key, tensor, *, kept):
        return original(self, key, tensor, kept=False)

    with (
        mock.patch.object(digests.Digests, "_content", never),
        pytest.raises((ReplayError, StoreError), match=r"self-check|does not replay"),
    ):
        train(LATE, tmp_path / "p", every=1, keep=4)


def test_replays_hash_everything():
    found, state = digests.Digests(trust=False), State({FROZEN: torch.zeros(50_000)})
    for value in (0.0, 1.0, 2.0):
        for _ in range(6):
            found.of(state, kept=False)
            assert not found.settled
        state.tensors[FROZEN].data.fill_(value)
        assert found.of(state, kept=False) == state.digests()


def moved(tensors):
    """Ways in which a program may change what an entry is, by name."""
    square = tensors["parameter/a"]

    def transpose():
        square.data = square.data.T

    def take_over():
        square.data = torch.randn(8, 8)

    def narrow():
        square.data = square.data[:4]

    def reinterpret():
        tensors["buffer/b"].data = tensors["buffer/b"].data.view(torch.int32)

    def replace():
        tensors["buffer/b"] = tensors["buffer/b"] + 1

    def leave_out():
        del tensors["optimizer/c"]

    def spread():
        square.data = torch.randn(8, 16)[:, ::2]

    def add():
        tensors["buffer/a"] = torch.zeros((), dtype=torch.bfloat16)

    def swap():
        tensors["buffer/b"], tensors["optimizer/c"] = tensors["optimizer/c"], tensors["buffer/b"]

    def reorder():
        items = sorted(tensors.items(), reverse=True)
        tensors.clear()
        tensors.update(items)

    return [transpose, take_over, narrow, reinterpret, replace, leave_out, spread, add, swap, reorder]


@pytest.mark.parametrize("number", range(10))
def test_whatever_becomes_of_a_small_tensor_its_bytes_are_found(number):
    """Views are of the memory where a tensor was; each of these makes one of them wrong."""
    found = digests.Digests(trust=True)
    tensors = {
        "parameter/a": torch.nn.Parameter(torch.randn(8, 8)), "buffer/b": torch.randn(5), "optimizer/c": torch.randn(5),
    }  # fmt: skip
    for change in (lambda: None, moved(tensors)[number], lambda: None):
        change()
        for tensor in tensors.values():
            for write in (lambda t: t.detach().fill_(3), lambda t: t.data.add_(1)):
                write(tensor)
                state = State(dict(tensors))
                assert found.of(state, kept=False) == state.digests()
    assert len(moved(tensors)) == 10


def test_buffers_that_appear_later_are_of_their_own_kind():
    """Which names are persistent is asked once, and again when there are others."""
    model = torch.nn.Linear(2, 2)
    parts = Parts({"model": model}, (), Bases(None))
    assert {key.partition("/")[0] for key in parts.capture().tensors} == {"parameter"}
    model.register_buffer("kept", torch.zeros(1))
    model.register_buffer("left", torch.zeros(1), persistent=False)
    for _ in range(2):
        assert {"buffer/model.kept", "transient/model.left"} <= parts.capture().tensors.keys()


@pytest.mark.parametrize(("value", "settled"), [(1.0, True), (1e30, False), (torch.inf, False), (torch.nan, False)])
def test_large_values_of_small_tensors_are_looked_at_again_and_warn_nobody(value, settled):
    """Their squares overflow, which says nothing of the values."""
    found, state = digests.Digests(trust=True), State({"parameter/a": torch.full((5,), value)})
    found.of(state, kept=False)
    assert ("parameter/a" in found.settled) is settled


def test_what_the_program_lets_go_of_is_let_go_of():
    found, key = digests.Digests(trust=True), "buffer/b"
    for size in (5, 50_000):
        tensor = torch.randn(size)
        gone = weakref.ref(tensor)
        found.of(State({key: tensor}), kept=False)
        del tensor
        found.of(State({key: torch.randn(size)}), kept=False)
        assert gone() is None


def test_waiting_for_the_disk_is_in_the_journal(tmp_path):
    """Every kept state waits here until the one before is written."""
    save, waiting = writer.save_atomically, threading.Event()
    drain = writer.Writer._drain

    def slow(state, path, **options):
        if "000000000000" not in path.name:
            assert waiting.wait(20)
        save(state, path, **options)

    def telling(self):
        if any(written is not None for written, _ in self._waiting):
            threading.Timer(0.05, waiting.set).start()
        drain(self)

    with mock.patch.object(writer, "save_atomically", slow), mock.patch.object(writer.Writer, "_drain", telling):
        train(BACKBONE, tmp_path / "p", every=1, keep=1)
    data = (tmp_path / "p" / JOURNAL).read_bytes()
    waited = canonical.decode(data, Journal, what=JOURNAL, limit=MAX_JOURNAL).waited
    assert waited is not None
    assert waited.times >= 1
    assert float(waited.seconds) > 0
    assert check(tmp_path / "p", BACKBONE).verdict is Verdict.ACCEPT


class Keeps(InProcess):
    """Keeps the job of a training."""

    def run(self, job):
        if isinstance(job, Train):
            self.job = job
        yield from super().run(job)


def trained(job, folder, **changes):
    """Root of the last state, and learned weights, of the same training recorded in another way."""
    folder.mkdir()
    registered = msgspec.structs.replace(job.registered, every=changes.pop("every"))
    events = InProcess().run(msgspec.structs.replace(job, registered=registered, directory=str(folder), **changes))
    return [event for event in events if isinstance(event, Recorded)][-1].interval.root


@pytest.mark.parametrize("recipe", [BACKBONE, AVERAGED, f"{ZOO / 'zoo_states.py'}:Momentum"])
def test_whatever_is_recorded_the_weights_are_the_same_bits(tmp_path, recipe):
    """Digests at each step or never, states packed and kept or not, contents trusted or not; and nothing recorded."""
    executor = Keeps()
    train(recipe, tmp_path / "p", executor=executor)
    entry = Entry(executor.job.program)
    last = executor.job.start.stop
    roots = {advance(entry.make, Frame(entry.streams), Position(), None, None).root_now()} | {
        trained(executor.job, tmp_path / f"{every}-{keep}-{trust}", every=every, keep=keep, trust=trust)
        for every, keep, trust in [(1, 1, True), (1, 1, False), (1, last, True), (last, 1, True), (5, 2, True)]
    }
    assert len(roots) == 1
