"""States that a verifier asks for and a prover takes again, through a folder that both can write to.

What the one could do to the other through that folder comes first.
"""

import os
from pathlib import Path

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from factory import NONCE, RECIPE, STEPS, TOLERANCE, check, decision, factory, forge, known_key
from pol import canonical
from pol.attacks.forger import Forger
from pol.auditor import LocalAuditor
from pol.checkpoint import Checkpoint
from pol.errors import FormatError, ReplayError, StoreError, UsageError
from pol.exchange import POLL_SECONDS, REQUEST, Patience, SharedFolder
from pol.messages import Failed, Recorded
from pol.proof.policy import EXACT, Challenge
from pol.proof.report import Verdict
from pol.proof.request import MAX_REQUEST, Request, make_request, read_request
from pol.replay.inprocess import InProcess
from pol.responder import regenerate
from pol.store import checkpoint_path
from pol.verifier import StoppedByError, StoppedWaiting, auditing, requested, verify

WANTED = [3, 9]
"""Of 0, 3, 6, 9, 12 and 14 the proof keeps every second, and the last."""


def seldom():
    return factory().proof(2, "tolerance")


def answer(out, *steps, proof=None, auditor=LocalAuditor, **options):
    with auditor(RECIPE, executor=InProcess()) as here:
        return regenerate(proof or seldom(), out, recipe=RECIPE, steps=steps or None, auditor=here, **options)


class Time:
    """A clock that stands still but for what is slept, and things that happen meanwhile."""

    def __init__(self, *events):
        self.now, self.slept, self._events = 0.0, [], iter(events)

    def sleep(self, seconds):
        self.now += seconds
        self.slept.append(seconds)
        if (event := next(self._events, None)) is not None:
            event()

    def patience(self, seconds=60.0):
        return Patience(seconds, self.sleep, lambda: self.now)


def waiting(folder, *events, seconds=60.0, proof=None, **options):
    """Verify, while these things happen one after the other."""
    return check(proof or seldom(), policy=TOLERANCE, openings=folder, wait=Time(*events).patience(seconds), **options)


def honest(step):
    """Bytes of a state that is not in the proof."""
    folder = factory().folder / "exchange-honest"
    if not folder.exists():
        answer(folder, *WANTED)
    return (folder / checkpoint_path(step)).read_bytes()


def send(folder, step, data):
    path = folder / checkpoint_path(step)
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(data)


# -- what a prover could do to a verifier ---------------------------------------------------------------------------


def spliced(at, where):
    """A run that jumps at one step and goes on honestly from there, and the state to which honest steps lead."""
    honest = []

    def make(workshop, out):
        forger = workshop.open()
        forger.intervals = []
        workshop.train(forger)
        forger.states[at].save(where / "honest")
        honest.append((where / "honest").read_bytes())
        forger.states[at].tensors["parameter/model.4.weight"] += 0.5
        if at < STEPS:
            workshop.train(forger, at)
        forger.seal(out, workshop.key)
        for step in WANTED:
            send(where, step, b"")
            forger.states[step].save(where / checkpoint_path(step))

    return forge(where, make, rule="tolerance", keep=2).path, honest[0]


class Swapping(LocalAuditor):
    """An auditor during whose work, when all steps are taken again, the prover replaces a file by a better one."""

    def replay(self, *args, **options):
        events = list(super().replay(*args, **options))
        self.swap()
        yield from events


@pytest.mark.parametrize("at", [9, 6, STEPS], ids=["sent", "kept", "the last"])
def test_a_file_that_is_replaced_between_check_and_use_is_not_used(tmp_path, monkeypatch, at):
    proof, better = spliced(at, tmp_path)
    where = (tmp_path if at == 9 else proof) / checkpoint_path(at)
    true = where.read_bytes()

    def judged():
        where.write_bytes(true)
        with Swapping(RECIPE, executor=InProcess()) as auditor:
            auditor.swap = lambda: where.write_bytes(better)
            return verify(proof, policy=TOLERANCE, openings=tmp_path, auditor=auditor, nonce=NONCE)

    assert decision(judged()) == (Verdict.REJECT, 7)

    def in_place(case, step):
        return Checkpoint(case.store if step in case.checkpoints else case.openings, checkpoint_path(step))

    monkeypatch.setattr(auditing, "state_after", in_place)  # compares with what is there when it looks
    report = judged()
    assert report.verdict is Verdict.ACCEPT, report.reason()


def test_a_state_that_was_not_recorded_is_the_provers_failure_at_once(tmp_path):
    time = Time(lambda: send(tmp_path, 3, honest(9)))
    report = check(seldom(), policy=TOLERANCE, openings=tmp_path, wait=time.patience())
    assert decision(report) == (Verdict.REJECT, 6)
    assert "in the openings: not the state that the log records after 3 steps" in report.reason()
    assert len(time.slept) == 1
    assert report.request is None  # no answer would change it


def link(path, target):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.symlink_to(target)


STRANGE = {
    "a link to a state": lambda path, there: link(path, there),
    "a link to nothing": lambda path, there: link(path, there / "nothing"),
    "a pipe": lambda path, there: (path.parent.mkdir(), os.mkfifo(path)),
    "a folder": lambda path, there: path.mkdir(parents=True),
    "a linked folder": lambda path, there: path.parent.symlink_to(there.parent),
    "a file in place of the folder": lambda path, there: path.parent.write_bytes(b""),
}


@pytest.mark.parametrize("kind", STRANGE)
def test_only_a_regular_file_is_an_answer(tmp_path, kind):
    folder = tmp_path / "DIR"
    folder.mkdir()
    honest(3)
    STRANGE[kind](folder / checkpoint_path(3), factory().folder / "exchange-honest" / checkpoint_path(3))
    assert decision(waiting(folder)) == (Verdict.REJECT, 6)


def test_a_huge_file_is_not_copied(tmp_path):
    answer(tmp_path, *WANTED)
    with (tmp_path / checkpoint_path(9)).open("r+b") as file:
        file.truncate(2**42)  # sparse: 4 TiB
    report = waiting(tmp_path)
    assert decision(report) == (Verdict.REJECT, 6)
    assert "larger than a state of this run could be" in report.reason()


@pytest.mark.parametrize("rewritten", [[3], [3, 6], [], None])
def test_a_verifier_does_not_read_its_own_request(tmp_path, rewritten):
    """It is edited or removed while the verifier waits, and only what it then says is answered."""
    request = tmp_path / REQUEST

    def edit():
        asked = read_request(request.read_bytes(), what="")
        assert asked.steps == WANTED
        request.unlink()
        if rewritten:
            request.write_bytes(make_request(asked.attestation, rewritten))
            answer(tmp_path)

    report = waiting(tmp_path, edit)
    assert decision(report) == (Verdict.INCONCLUSIVE, None)
    assert f"{1 if rewritten else 2} of the states" in report.reason()
    answer(tmp_path, *WANTED)
    assert waiting(tmp_path).verdict is Verdict.ACCEPT


def test_a_challenge_that_nobody_answered_is_not_drawn_anew(tmp_path, monkeypatch):
    """Who leaves challenges unanswered until one suits would get past any."""
    first = check(seldom(), policy=TOLERANCE, openings=tmp_path)
    again = check(seldom(), policy=TOLERANCE, openings=tmp_path, nonce=None)
    assert again.verdict is Verdict.INCONCLUSIVE
    assert "is of an earlier challenge of this proof, which nobody has answered" in again.reason()
    assert "If it was this verifier that failed, before it could print them" in again.reason()
    assert again.request is None
    answer(tmp_path)
    assert check(seldom(), policy=TOLERANCE, openings=tmp_path, nonce=bytes.fromhex(first.nonce)).verdict == "ACCEPT"
    check(seldom(), policy=TOLERANCE, openings=tmp_path / "new")
    monkeypatch.setattr(requested, "_asked_before", lambda *_: False)
    assert check(seldom(), policy=TOLERANCE, openings=tmp_path / "new", nonce=None).request is not None


def test_what_lies_there_of_another_proof_or_as_rubbish_is_written_over(tmp_path):
    for data in (make_request("sha256:" + "0" * 64, [3]), b"rubbish"):
        (tmp_path / REQUEST).write_bytes(data)
        assert check(seldom(), policy=TOLERANCE, openings=tmp_path, nonce=None).request is not None
        (tmp_path / REQUEST).unlink()


def test_a_request_is_not_written_through_a_link(tmp_path):
    folder, victim = tmp_path / "DIR", tmp_path / "victim"
    folder.mkdir()
    victim.write_bytes(b"mine")
    link(folder / REQUEST, victim)
    for name in ("request.json.tmp", f".{REQUEST}"):
        link(folder / name, victim)
    assert waiting(folder, seconds=0).verdict is Verdict.INCONCLUSIVE
    assert victim.read_bytes() == b"mine"
    assert read_request((folder / REQUEST).read_bytes(), what="").steps == WANTED
    assert not (folder / REQUEST).is_symlink()


def test_a_folder_in_the_folder_is_not_reached_through_a_link(tmp_path):
    victim = tmp_path / "victim"
    victim.mkdir()
    link(tmp_path / "DIR" / "parent", victim)
    inner = SharedFolder(tmp_path / "DIR").within("parent")
    for attempt in (lambda: inner.make(), lambda: inner.put(REQUEST, b"x"), lambda: inner.open(REQUEST)):
        with pytest.raises((UsageError, StoreError, FormatError)):
            attempt()
    assert list(victim.iterdir()) == []


def test_the_folder_itself_may_be_a_link_of_ones_own(tmp_path):
    (tmp_path / "real").mkdir()
    link(tmp_path / "DIR", tmp_path / "real")
    assert waiting(tmp_path / "DIR", lambda: answer(tmp_path / "DIR")).verdict is Verdict.ACCEPT


# -- half an answer -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [0, 7, 8, 100, -1])
def test_half_a_state_does_not_count_yet(tmp_path, size):
    """Whoever copies files into the folder by other means may be seen half way."""
    data = honest(3)
    events = [
        lambda: send(tmp_path, 3, data[:size]),
        lambda: send(tmp_path, 9, honest(9)),
        lambda: send(tmp_path, 3, data),
    ]
    report = waiting(tmp_path / "half", lambda: None, seconds=1)
    assert report.verdict is Verdict.INCONCLUSIVE
    report = waiting(tmp_path, *events[:2])
    assert decision(report) == (Verdict.INCONCLUSIVE, None)
    assert "1 of the states that are compared is not in the proof" in report.reason()
    assert waiting(tmp_path, *events).verdict is Verdict.ACCEPT


def test_a_state_that_shrinks_while_it_is_copied_does_not_count(tmp_path, monkeypatch):
    answer(tmp_path, *WANTED)
    copy = requested._copy
    shrunk = Path(checkpoint_path(9)).name
    monkeypatch.setattr(requested, "_copy", lambda f, size, to: copy(f, size // 2 if to.name == shrunk else size, to))
    report = waiting(tmp_path)
    assert decision(report) == (Verdict.INCONCLUSIVE, None)
    assert "1 of the states that are compared is not in the proof" in report.reason()


# -- what a verifier could do to a prover ---------------------------------------------------------------------------


def attestation_of(proof):
    return check(proof, policy=TOLERANCE).attestation


BAD = {
    "no JSON": b"request",
    "nothing": b"",
    "no object": b"[]",
    "spaces": lambda good: good.replace(b":", b": ", 1),
    "a further key": lambda good: good.replace(b"{", b'{"a":1,', 1),
    "another format": lambda good: good.replace(b"request/v1", b"request/v2"),
    "no steps": lambda good: good.replace(b"[3,9]", b"[]"),
    "another order": lambda good: good.replace(b"[3,9]", b"[9,3]"),
    "a step twice": lambda good: good.replace(b"[3,9]", b"[3,3]"),
    "a negative step": lambda good: good.replace(b"[3,9]", b"[-3]"),
    "a step that is text": lambda good: good.replace(b"[3,9]", b'["3"]'),
    "a step that is a float": lambda good: good.replace(b"[3,9]", b"[3.0]"),
    "a huge step": lambda good: good.replace(b"[3,9]", b"[%d]" % 2**64),
    "no digest": lambda good: good.replace(b"sha256:", b"md5:"),
    "a deep one": b"[" * 100_000,
}


@pytest.mark.parametrize("kind", BAD)
def test_what_is_no_request_is_refused(tmp_path, kind):
    content = BAD[kind]
    good = make_request(attestation_of(seldom()), WANTED)
    (tmp_path / REQUEST).write_bytes(content(good) if callable(content) else content)
    with pytest.raises(FormatError):
        answer(tmp_path)
    assert not any((tmp_path / "checkpoints").iterdir())


@pytest.mark.parametrize(
    ("steps", "words"), [([4], "4 is no boundary"), ([3, 10**9], "1000000000 is no"), ([2**53 - 1], "is no boundary")]
)
def test_a_request_for_what_is_no_state(tmp_path, steps, words):
    (tmp_path / REQUEST).write_bytes(make_request(attestation_of(seldom()), steps))
    with pytest.raises(UsageError, match=words):
        answer(tmp_path)


def test_a_request_about_another_proof(tmp_path):
    (tmp_path / REQUEST).write_bytes(make_request("sha256:" + "0" * 64, WANTED))
    with pytest.raises(UsageError, match="asks about another proof"):
        answer(tmp_path)


@pytest.mark.parametrize("kind", ["link", "pipe", "folder", "large"])
def test_a_request_that_is_no_file_to_read(tmp_path, kind):
    request = tmp_path / REQUEST
    if kind == "link":
        (tmp_path / "real.json").write_bytes(make_request(attestation_of(seldom()), WANTED))
        request.symlink_to(tmp_path / "real.json")
    elif kind == "pipe":
        os.mkfifo(request)
    elif kind == "folder":
        request.mkdir()
    else:
        request.touch()
        os.truncate(request, 2**40)
    with pytest.raises(FormatError):
        answer(tmp_path, wait=Time().patience())


def test_states_are_not_written_through_a_link(tmp_path):
    victim = tmp_path / "victim"
    victim.mkdir()
    link(tmp_path / "DIR" / "checkpoints", victim)
    with pytest.raises(UsageError, match="cannot make the folder"):
        answer(tmp_path / "DIR", *WANTED)
    assert list(victim.iterdir()) == []
    (tmp_path / "file").write_bytes(b"mine")
    link(tmp_path / "o" / "checkpoints" / Path(checkpoint_path(3)).name, tmp_path / "file")
    answer(tmp_path / "o", *WANTED)
    assert (tmp_path / "file").read_bytes() == b"mine"
    assert (tmp_path / "o" / checkpoint_path(3)).read_bytes() == honest(3)


# -- the exchange ---------------------------------------------------------------------------------------------------


def test_asked_without_waiting(tmp_path):
    """The verifier asks and ends; the prover answers; the same challenge goes on."""
    folder = tmp_path / "new" / "DIR"
    report = check(seldom(), policy=TOLERANCE, openings=folder)
    assert decision(report) == (Verdict.INCONCLUSIVE, None)
    assert report.request == str(folder / REQUEST)
    assert f"--nonce {report.nonce} --attestation {report.attestation}" in report.reason()
    assert f"--recipe … --out {folder}" in report.reason()
    asked = (folder / REQUEST).read_bytes()
    assert asked == canonical.encode(Request(attestation=report.attestation, steps=WANTED))
    assert len(answer(folder)) == 2
    pinned = msgspec.structs.replace(TOLERANCE, attestation=report.attestation)
    report = check(seldom(), policy=pinned, openings=folder)
    assert report.verdict is Verdict.ACCEPT, report.reason()
    assert report.request is None


def test_without_a_folder_there_is_nobody_to_ask():
    report = check(seldom(), policy=TOLERANCE, wait=Time().patience())
    assert decision(report) == (Verdict.INCONCLUSIVE, None)
    assert report.request is None
    assert "2 of the states that are compared are not in the proof: verify with --openings DIR" in report.reason()
    assert "--nonce" not in report.reason()  # nobody knows it yet: the next one may be another


def test_the_verifier_goes_on_when_all_are_there(tmp_path):
    told = []
    time = Time(None, lambda: answer(tmp_path, 3), None, lambda: answer(tmp_path))
    report = check(
        seldom(), policy=TOLERANCE, openings=tmp_path, wait=time.patience(), progress=lambda *now: told.append(now)
    )
    assert report.verdict is Verdict.ACCEPT, report.reason()
    assert len(report.intervals) == 5
    assert time.slept == [POLL_SECONDS] * 4
    phase = f"waiting for the prover, who is asked in {tmp_path / REQUEST}"
    assert [(done, total) for name, done, total in told if name == phase] == [(0, 2), (0, 2), (1, 2), (1, 2)]
    assert not (tmp_path / REQUEST).exists()


def test_what_is_there_already_is_not_asked_for(tmp_path):
    answer(tmp_path, 3)

    def look():
        assert read_request((tmp_path / REQUEST).read_bytes(), what="").steps == [9]
        answer(tmp_path)

    assert waiting(tmp_path, look).verdict is Verdict.ACCEPT
    assert waiting(tmp_path).verdict is Verdict.ACCEPT  # nothing to ask for


def test_waiting_ends(tmp_path):
    time = Time()
    report = check(seldom(), policy=TOLERANCE, openings=tmp_path, wait=time.patience(1.2))
    assert decision(report) == (Verdict.INCONCLUSIVE, None)
    assert time.slept == [POLL_SECONDS, POLL_SECONDS, pytest.approx(0.2)]
    assert report.request == str(tmp_path / REQUEST)
    assert (tmp_path / REQUEST).exists()


def test_an_answer_in_the_last_moment_counts(tmp_path):
    assert waiting(tmp_path, None, lambda: answer(tmp_path), seconds=0.7).verdict is Verdict.ACCEPT


@pytest.mark.parametrize("seconds", [0.0, -1.0, float("nan")])
def test_no_wait_is_one_look(seconds):
    time = Time()
    assert len(list(time.patience(seconds).looks())) == 1
    assert time.slept == []


def stop():
    raise KeyboardInterrupt


def test_interrupted_while_it_waits(tmp_path):
    with pytest.raises(StoppedWaiting) as stopped:
        waiting(tmp_path, None, stop)
    assert isinstance(stopped.value, KeyboardInterrupt)
    assert (stopped.value.nonce, stopped.value.attestation) == ("00" * 32, attestation_of(seldom()))


def test_interrupted_before_anybody_was_asked(tmp_path):
    def tell(phase, *_):
        if phase == "taking over states":
            stop()

    with pytest.raises(KeyboardInterrupt) as stopped:
        waiting(tmp_path, progress=tell)
    assert not isinstance(stopped.value, StoppedWaiting)


class Stopping(LocalAuditor):
    def replay(self, *_, **__):
        stop()


def test_interrupted_while_it_audits_the_challenge_is_still_known(tmp_path):
    patience = Time(lambda: answer(tmp_path)).patience()
    with Stopping(RECIPE, executor=InProcess()) as auditor, pytest.raises(StoppedWaiting):
        verify(seldom(), policy=TOLERANCE, openings=tmp_path, wait=patience, auditor=auditor)


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (StoreError("cannot take over a state: No space left on device"), "cannot take over a state: No space left"),
        (OSError(5, "Input/output error"), "Input/output error"),
        (MemoryError(), "MemoryError"),
    ],
    ids=["full disk", "failing disk", "no memory"],
)
def test_an_error_of_this_machine_leaves_the_challenge_as_known_as_it_is(tmp_path, monkeypatch, error, said):
    """What the verifier has to name when it goes on goes out with the error, and the same challenge is accepted."""

    def fails(*_):
        raise error

    def full():
        answer(tmp_path, 3)
        monkeypatch.setattr(requested, "_copy", fails)

    with pytest.raises(StoppedByError, match=said) as stopped:
        waiting(tmp_path, full)
    monkeypatch.undo()
    assert stopped.value.__cause__ is error
    assert (stopped.value.nonce, stopped.value.attestation) == ("00" * 32, attestation_of(seldom()))
    answer(tmp_path)
    pinned = msgspec.structs.replace(TOLERANCE, attestation=stopped.value.attestation)
    report = check(seldom(), policy=pinned, openings=tmp_path, nonce=bytes.fromhex(stopped.value.nonce))
    assert report.verdict is Verdict.ACCEPT, report.reason()


def test_an_error_before_anybody_was_asked_goes_out_as_it_is(tmp_path, monkeypatch):
    def fails(*_):
        raise StoreError("full")

    monkeypatch.setattr(requested, "_copy", fails)
    with pytest.raises(StoreError, match="full"):
        check(seldom(), policy=TOLERANCE, openings=tmp_path)


def test_steps_beyond_the_budget_are_not_asked_for(tmp_path):
    policy = msgspec.structs.replace(TOLERANCE, max_steps=STEPS - 1)
    report = check(seldom(), policy=policy, openings=tmp_path, wait=Time(stop).patience())
    assert decision(report) == (Verdict.INCONCLUSIVE, None)
    assert "your policy allows 13" in report.reason()
    assert not (tmp_path / REQUEST).exists()


def test_only_states_of_challenged_intervals_are_asked_for(tmp_path):
    few = msgspec.structs.replace(TOLERANCE, challenge=Challenge(strategy="uniform", uniform=0))
    report = check(factory().proof(5, "tolerance"), policy=few, openings=tmp_path)
    assert read_request((tmp_path / REQUEST).read_bytes(), what="").steps == [3, 6, 9, 12]
    assert report.draws.all() == [0, 1, 2, 3, 4]  # one window
    report = check(factory().proof(1, "tolerance"), policy=few, openings=tmp_path / "none")
    assert report.verdict is Verdict.ACCEPT
    assert list((tmp_path / "none").iterdir()) == []


def test_rule_exact_asks_for_nothing(tmp_path):
    report = check(factory().proof(2), policy=EXACT, openings=tmp_path, wait=Time(stop).patience())
    assert report.verdict is Verdict.ACCEPT
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_cannot_be_made(tmp_path):
    (tmp_path / "file").touch()
    for folder in (tmp_path / "file", tmp_path / "file" / "inner"):
        with pytest.raises(UsageError, match="cannot make the folder"):
            check(seldom(), policy=TOLERANCE, openings=folder)


# -- the prover -----------------------------------------------------------------------------------------------------


def test_the_prover_waits_for_a_verifier(tmp_path):
    told = []

    def ask():
        check(seldom(), policy=TOLERANCE, openings=tmp_path)

    written = answer(tmp_path, wait=Time(None, ask).patience(), progress=lambda *now: told.append(now))
    assert [path.name for path in written] == ["000000000003.safetensors", "000000000009.safetensors"]
    assert told[:2] == [(f"waiting for a verifier to ask in {tmp_path / REQUEST}", 0, None)] * 2
    assert not list(tmp_path.glob(".regenerate-*"))


def test_nobody_asks(tmp_path):
    time = Time()
    with pytest.raises(UsageError, match="nobody asks there"):
        answer(tmp_path, wait=time.patience(1.0))
    assert time.slept == [POLL_SECONDS] * 2


def test_states_of_the_proof_are_copied(tmp_path):
    class Idle(LocalAuditor):
        def replay(self, *_, **__):
            raise AssertionError("nothing is to be taken again")

    answer(tmp_path, 0, 6, 14, auditor=Idle)
    for step in (0, 6, 14):
        assert (tmp_path / checkpoint_path(step)).read_bytes() == (seldom() / checkpoint_path(step)).read_bytes()


class Counting(LocalAuditor):
    """Notes what is replayed, and which states are written."""

    def replay(self, *args, **options):
        self.segments, self.written = args[4], []
        for event in super().replay(*args, **options):
            self.written += sorted(path.name for path in options["save"].iterdir())
            yield event


def test_a_window_is_taken_once_and_only_what_is_asked_for_is_written(tmp_path):
    with Counting(RECIPE, executor=InProcess()) as auditor:
        regenerate(factory().proof(5, "tolerance"), tmp_path, recipe=RECIPE, steps=[12, 6], auditor=auditor)
    assert [(segment.start, segment.stop) for segment in auditor.segments] == [(0, 12)]
    assert set(auditor.written) == {"000000000006.safetensors", "000000000012.safetensors"}
    assert sorted(path.name for path in (tmp_path / "checkpoints").iterdir()) == sorted(set(auditor.written))


class Dying(LocalAuditor):
    """A prover that is killed after it has answered with one state."""

    def replay(self, *args, **options):
        for event in super().replay(*args, **options):
            yield event
            if isinstance(event, Recorded) and event.interval.stop == 3:
                stop()


def test_a_prover_that_was_stopped_goes_on(tmp_path):
    def killed():
        with pytest.raises(KeyboardInterrupt):
            answer(tmp_path, auditor=Dying)
        assert [path.name for path in (tmp_path / "checkpoints").iterdir()] == ["000000000003.safetensors"]

    def again():
        with Counting(RECIPE, executor=InProcess()) as auditor:
            regenerate(seldom(), tmp_path, recipe=RECIPE, auditor=auditor)
        assert [(segment.start, segment.stop) for segment in auditor.segments] == [(6, 9)]

    report = waiting(tmp_path, killed, again)
    assert report.verdict is Verdict.ACCEPT, report.reason()


@pytest.mark.parametrize("event", [None, Failed(kind="Killed", message="the training process was killed")])
def test_a_program_that_ends_early(tmp_path, event):
    class Ending(LocalAuditor):
        def replay(self, *_, **__):
            yield from [event] if event else []

    with pytest.raises(ReplayError, match="killed" if event else "ended before step 3"):
        answer(tmp_path, 3, 9, auditor=Ending)


def test_a_changed_proof_is_not_copied_from(tmp_path):
    forger = Forger(seldom())
    forger.states[6] = forger.states[12]
    forger.seal(tmp_path / "p", known_key(1), roots=False)
    with pytest.raises(Exception, match="not the state that the log records after 6 steps"):
        answer(tmp_path / "o", 6, proof=tmp_path / "p")


# -- the form of a request ------------------------------------------------------------------------------------------


@given(st.lists(st.integers(0, 2**53 - 1), min_size=1, max_size=50))
def test_a_request_is_read_as_it_was_written(steps):
    digest = "sha256:" + "ab" * 32
    data = make_request(digest, steps)
    assert read_request(data, what="r") == Request(attestation=digest, steps=sorted(set(steps)))


def test_the_largest_log_has_room_in_a_request():
    steps = list(range(10**11, 10**11 + 1_000_000))
    assert len(make_request("sha256:" + "0" * 64, steps)) < MAX_REQUEST
