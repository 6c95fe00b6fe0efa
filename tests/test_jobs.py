"""A replay that several processes share finds what one finds: the same report, whatever is forged and whoever fails."""

import itertools
import os
import random
from pathlib import Path

import msgspec
import pytest

from factory import NONCE, TOLERANCE, factory, forge
from pol.attacks.tampering import _plant
from pol.auditor import LocalAuditor
from pol.cli import main
from pol.errors import StoreError, UsageError
from pol.executors.local import LocalProcess
from pol.executors.sharing import deal, in_order, merged
from pol.keys import SigningKey
from pol.messages import Failed, Finished, Opened, Recorded, Replay, Segment, Stepped
from pol.profile import Profile
from pol.proof.policy import Challenge, Policy
from pol.proof.report import Verdict
from pol.prover import record
from pol.replay.inprocess import InProcess
from pol.verifier import verify
from references import OPENING, RECIPE

INTERVALS = 5
JOBS = (1, 2, 3)


def audit(proof, jobs, executor=None, recipe=RECIPE, **options):
    """A report without the time that it took."""
    with LocalAuditor(recipe, executor=executor or InProcess(), jobs=jobs) as auditor:
        report = verify(proof, auditor=auditor, **{"nonce": NONCE, **options})
    return msgspec.structs.replace(report, seconds=0.0)


# -- the same report --------------------------------------------------------------------------------------------------


def wrong_record(index):
    """An interval whose record says something else."""

    def make(workshop, out):
        forger = workshop.open()
        forger.replace(index, loss="0.25")
        forger.seal(out, workshop.key)

    return make


def wrong_state(index):
    """An interval that ends in an edited state, from which the next one goes on."""

    def make(workshop, out):
        forger = workshop.open()
        _plant(forger.states[forger.intervals[index].stop])
        forger.seal(out, workshop.key)

    return make


@pytest.mark.parametrize("wrong", [wrong_record, wrong_state])
@pytest.mark.parametrize("index", range(INTERVALS))
def test_a_forged_interval_is_found_wherever_it_is(index, wrong, tmp_path):
    proof = forge(tmp_path, wrong(index)).path
    one, two, three = (audit(proof, jobs) for jobs in JOBS)
    assert (one.verdict, one.caught_by) == (Verdict.REJECT, 7)
    assert f"First: interval {index} " in one.reason()
    assert [result.index for result in one.intervals] == list(range(INTERVALS))
    assert one == two == three


@pytest.mark.parametrize("pair", list(itertools.combinations(range(INTERVALS), 2)))
def test_of_two_the_first_is_named(pair, tmp_path):
    def make(workshop, out):
        forger = workshop.open()
        for index in pair:
            forger.replace(index, loss="0.25")
        forger.seal(out, workshop.key)

    proof = forge(tmp_path, make).path
    one, two, three = (audit(proof, jobs) for jobs in JOBS)
    assert f"2 of 5 replayed intervals failed. First: interval {pair[0]} " in one.reason()
    assert one == two == three


@pytest.mark.parametrize("keep", [1, 2])
def test_honest_proofs_are_accepted(keep):
    one, two, many = (audit(factory().proof(keep), jobs) for jobs in (1, 2, 99))
    assert one.verdict is Verdict.ACCEPT
    assert one == two == many


def test_rule_tolerance_too():
    """Its states are saved for the comparison, and compared in the order of the intervals."""
    proof = factory().proof(rule="tolerance")
    one, two, three = (audit(proof, jobs, policy=TOLERANCE) for jobs in JOBS)
    assert one.verdict is Verdict.ACCEPT
    assert one == two == three


def test_a_challenge_of_few(tmp_path):
    few = Policy(challenge=Challenge(strategy="uniform", uniform=2))
    one, two, three = (audit(factory().proof(), jobs, policy=few) for jobs in JOBS)
    assert one.verdict is Verdict.ACCEPT
    assert one == two == three


# -- who does what ----------------------------------------------------------------------------------------------------


def segment(start, stop):
    return Segment(start=start, stop=stop, checkpoint=None, counts={})


@pytest.mark.parametrize("count", range(1, 9))
def test_steps_are_shared_out_evenly(count):
    lengths = [3, 40, 7, 7, 1, 12, 12, 12, 5, 30, 2, 9]
    ends = list(itertools.accumulate(lengths, initial=0))
    segments = [segment(a, b) for a, b in itertools.pairwise(ends)]
    shares = deal(segments, count)
    assert sorted(itertools.chain(*shares)) == list(range(len(segments)))
    assert all(share == sorted(share) and share for share in shares)
    steps = [sum(lengths[number] for number in share) for share in shares]
    assert max(steps) - min(steps) <= max(lengths)
    equal = deal([segment(n, n + 1) for n in range(7)], count)
    assert equal == [list(range(first, 7, count)) for first in range(min(count, 7))]


def test_nobody_has_nothing_to_do():
    assert deal([segment(0, 3), segment(3, 6)], 5) == [[0], [1]]
    assert deal([], 5) == []


# -- what is told -----------------------------------------------------------------------------------------------------


class Noting(InProcess):
    """Notes the jobs."""

    def __init__(self):
        self.jobs = []

    def run(self, job):
        self.jobs.append(job)
        return super().run(job)


@pytest.fixture(scope="module")
def job():
    """The replay of all intervals of an honest proof."""
    executor = Noting()
    audit(factory().proof(), 1, executor)
    return executor.jobs[-1]


def told(events):
    return [event for event in events if not isinstance(event, Stepped)]


class Arriving:
    """Events of several jobs that arrive in a drawn order; progress is told at once."""

    def __init__(self, events, seed):
        self.left, self.draw = [list(of) for of in events], random.Random(seed)
        self.waiting = [[] for _ in events]

    def of(self, number):
        while self.waiting[number] or any(self.left):
            if self.waiting[number]:
                yield number, self.waiting[number].pop(0)
                continue
            some = self.draw.choice([which for which, of in enumerate(self.left) if of])
            event = self.left[some].pop(0)
            if isinstance(event, Stepped):
                yield some, event
            else:
                self.waiting[some].append(event)


def shared(job, count, change=lambda number, events: events):
    """(shares, events of each); ``change`` gets what each share yields."""
    shares = deal(job.segments, count)
    parts = [msgspec.structs.replace(job, segments=[job.segments[number] for number in share]) for share in shares]
    return shares, [list(change(number, InProcess().run(part))) for number, part in enumerate(parts)]


@pytest.mark.parametrize("count", [2, 3, 5])
def test_the_events_are_those_of_one_process(job, count):
    alone = told(InProcess().run(job))
    shares, events = shared(job, count)
    for seed in range(20):
        assert told(merged(job, shares, Arriving(events, seed))) == alone
    assert told(in_order(job, shares, InProcess())) == alone


def test_progress_counts_the_steps_of_all(job):
    shares, events = shared(job, 2)
    stepping = [[event for step, one in enumerate(of, start=1) for event in (Stepped(step=step), one)] for of in events]
    for seed in range(20):
        steps = [event.step for event in merged(job, shares, Arriving(stepping, seed)) if isinstance(event, Stepped)]
        assert steps == sorted(steps)
        assert steps[-1] <= sum(map(len, events))
        assert len(steps) > len(events[0])


@pytest.mark.parametrize("failing", range(3))
@pytest.mark.parametrize("left", range(3))
def test_what_stops_one_share_stops_the_replay_in_its_place(job, failing, left):
    """Everything before it is told, in order, and nothing after it."""
    alone = told(InProcess().run(job))

    def change(number, events):
        kept = list(events)
        return [*kept[:left], Failed(kind="Killed", message="no such luck")] if number == failing else kept

    shares, events = shared(job, 3, change)
    orders = [told(merged(job, shares, Arriving(events, seed))) for seed in range(20)]
    assert all(order == orders[0] for order in orders)
    *before, last = orders[0]
    assert isinstance(last, Failed)
    assert before == alone[: len(before)]
    first = next((event for event in alone[len(before) :] if isinstance(event, Opened | Recorded)), None)
    reached = [event for event in events[failing] if isinstance(event, Opened | Recorded)]
    assert first not in reached


@pytest.mark.parametrize("word", [None, Finished()], ids=["without a word", "as if it were done"])
@pytest.mark.parametrize("silent", range(3))
def test_a_share_that_ends_early_shows_nothing(job, silent, word):
    def change(number, events):
        return [word] * (word is not None) if number == silent else events

    shares, events = shared(job, 3, change)
    found = told(merged(job, shares, Arriving(events, 0)))
    recorded = [event.interval.start for event in found if isinstance(event, Recorded)]
    assert recorded == [job.segments[number].start for number in range(silent)]
    assert found[len(found) - (word is not None) :] == [word] * (word is not None)


def test_modules_that_any_share_imported_are_told(job):
    def change(number, events):
        for event in events:
            yield Finished(undeclared=[f"hidden{number % 2}"], asides=2) if isinstance(event, Finished) else event

    shares, events = shared(job, 3, change)
    assert told(merged(job, shares, Arriving(events, 0)))[-1] == Finished(undeclared=["hidden0", "hidden1"], asides=6)


# -- whoever fails ----------------------------------------------------------------------------------------------------


class Failing(InProcess):
    """An executor whose replays fail as often as it is told, at the segment that starts at a step."""

    def __init__(self, at, times, event):
        self.at, self.times, self.event, self.segments = at, times, event, []

    def run(self, job):
        if not isinstance(job, Replay):
            yield from super().run(job)
            return
        self.segments.append(len(job.segments))
        for event in super().run(job):
            begins = isinstance(event, Opened) and event.step == self.at
            if self.times and (begins or (isinstance(event, Recorded) and self.at == 0)):
                self.times -= 1
                if self.event is not None:
                    yield self.event
                return
            yield event


KILLED = Failed(kind="Killed", message="the training process was killed by signal 9")
ENDINGS = [KILLED, None, Finished()]


@pytest.mark.parametrize("event", ENDINGS, ids=["killed", "silent", "finished"])
@pytest.mark.parametrize("at", [0, 3, 9, 12])
def test_a_worker_that_fails_again_and_again_is_a_failure_of_the_proof(at, event):
    reports = [audit(factory().proof(), jobs, Failing(at, 99, event)) for jobs in JOBS]
    assert reports[0].verdict is Verdict.REJECT
    assert f"First: interval {at // 3} " in reports[0].reason()
    assert reports[0] == reports[1] == reports[2]


@pytest.mark.parametrize("event", ENDINGS, ids=["killed", "silent", "finished"])
@pytest.mark.parametrize("at", [0, 3, 9, 12])
def test_a_worker_that_fails_once_is_asked_again_and_alone(at, event):
    """Several processes may have wanted more memory than there is: that is no fault of the proof."""
    executor = Failing(at, 1, event)
    report = audit(factory().proof(), 3, executor)
    assert report.verdict is Verdict.ACCEPT, report.reason()
    assert report == audit(factory().proof(), 1)
    assert executor.segments[-1] == INTERVALS - at // 3
    assert max(executor.segments[:-1]) == 2


def test_what_fails_once_in_two_places_is_no_failure():
    """Each is asked twice."""

    class Twice(Failing):
        def run(self, job):
            for event in super().run(job):
                if isinstance(event, Failed):
                    self.at = 9
                yield event

    for jobs in JOBS:
        report = audit(factory().proof(), jobs, Twice(3, 2, KILLED))
        assert report.verdict is Verdict.ACCEPT, report.reason()


@pytest.mark.parametrize("jobs", JOBS)
def test_another_machine_is_undecided_with_any_number(jobs):
    """What differs where the control run differs, too, is no failure."""

    class Elsewhere(InProcess):
        def run(self, job):
            for event in super().run(job):
                if isinstance(event, Recorded):
                    event = msgspec.structs.replace(event, interval=msgspec.structs.replace(event.interval, loss="1.0"))
                if type(event).__name__ == "Controlled":
                    event = msgspec.structs.replace(event, steps=1)
                yield event

    report = audit(factory().proof(), jobs, Elsewhere())
    assert (report.verdict, report.caught_by) == (Verdict.INCONCLUSIVE, None)
    assert report == audit(factory().proof(), 1, Elsewhere())


@pytest.mark.parametrize("jobs", JOBS)
def test_a_full_disk_is_no_verdict(jobs):
    with pytest.raises(StoreError, match="this machine, not the proof"):
        audit(factory().proof(), jobs, Failing(3, 99, Failed(kind="StoreError", message="no space left")))


@pytest.mark.parametrize("jobs", [0, -1])
def test_somebody_has_to_do_it(jobs):
    with pytest.raises(UsageError, match="at least one process"):
        LocalAuditor(RECIPE, jobs=jobs)
    with pytest.raises(UsageError, match="at least one process"):
        verify(factory().proof(), recipe=RECIPE, jobs=jobs)


def test_an_auditor_has_its_own_number():
    with pytest.raises(UsageError, match="to the auditor that you bring"), LocalAuditor(RECIPE) as auditor:
        verify(factory().proof(), auditor=auditor, jobs=2)


# -- processes --------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def ending(tmp_path_factory):
    """(reference, proof, the file that says how its process ends); eight intervals."""
    folder = tmp_path_factory.mktemp("ending")
    recipe, odd = f"{OPENING}:Ending", folder / "odd"
    settings = {"notes": str(folder / "notes"), "odd": str(odd)}
    options = {"every": 1, "profile": Profile(threads=1), "executor": InProcess(), "settings": settings}
    record(recipe, folder / "proof", key=SigningKey.generate(), **options)
    return recipe, folder / "proof", odd


def processes(recipe, proof, jobs, **options):
    """A verification by real processes, none of which is left."""
    before = children()
    try:
        report = verify(proof, recipe=recipe, jobs=jobs, nonce=NONCE, **options)
    finally:
        assert children() == before
    return msgspec.structs.replace(report, seconds=0.0)


def children():
    return Path(f"/proc/{os.getpid()}/task/{os.getpid()}/children").read_text().split()


@pytest.mark.slow
@pytest.mark.parametrize("act", ["", "kill once", "kill the parent once"])
def test_processes_accept_what_one_accepts(ending, act):
    recipe, proof, odd = ending
    reports = []
    for jobs in (1, 3):
        if act:
            odd.write_text(act)
        reports.append(processes(recipe, proof, jobs))
        assert not odd.exists()
    assert reports[0].verdict is Verdict.ACCEPT, reports[0].reason()
    assert reports[0] == reports[1] == audit(proof, 1, recipe=recipe)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("act", "words"), [("kill", "was killed by signal 9"), ("kill the parent", "ended without an answer")]
)
def test_processes_reject_what_one_rejects(ending, act, words):
    recipe, proof, odd = ending
    odd.write_text(act)
    try:
        one, three = (processes(recipe, proof, jobs) for jobs in (1, 3))
    finally:
        odd.unlink()
    assert one.verdict is Verdict.REJECT
    assert words in one.reason()
    assert sum(result.status == "failed" for result in one.intervals) == 2  # one in each epoch
    assert one == three


@pytest.mark.slow
def test_an_interrupted_verification_leaves_no_process(ending, monkeypatch):
    """One that would never end among them."""
    recipe, proof, odd = ending
    received = LocalProcess.receive

    def interrupted(process):
        events = received(process)
        if any(isinstance(event, Recorded) for event in events):
            raise KeyboardInterrupt
        return events

    monkeypatch.setattr(LocalProcess, "receive", interrupted)
    odd.write_text("wait")
    try:
        with pytest.raises(KeyboardInterrupt):
            processes(recipe, proof, 2)
    finally:
        odd.unlink()


@pytest.mark.slow
def test_the_command(ending, capsys):
    recipe, proof, _ = ending
    assert main(["verify", str(proof), "--recipe", recipe, "--jobs", "2"]) == 0
    assert "ACCEPT" in capsys.readouterr().out
    assert main(["verify", str(proof), "--recipe", recipe, "--jobs", "0"]) == 3
