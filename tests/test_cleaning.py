"""``pol gc`` removes what no answer needs, and nothing else."""

import itertools
import json
import shutil
from pathlib import Path

import pytest

from pol.auditor import LocalAuditor
from pol.cleaning import clean
from pol.cli import main
from pol.errors import IntegrityError, UsageError
from pol.proof.report import Verdict
from pol.replay.inprocess import InProcess
from pol.responder import regenerate
from pol.store import Lock, held
from zoo.tools import ZOO, check, train

MOMENTUM = f"{ZOO / 'zoo_states.py'}:Momentum"
LITTER = ("attestation.json.tmp", "checkpoints/000000000004.tmp", "checkpoints/.tmpAb12Cd", ".recording")


class Stop(InProcess):
    """The recorder stops when it has got ``number`` events of all jobs."""

    def __init__(self, number):
        self.left = number

    def run(self, job):
        for event in super().run(job):
            yield event
            if type(event).__name__ in ("Opened", "Recorded"):
                self.left -= 1
                if not self.left:
                    raise KeyboardInterrupt


@pytest.fixture(scope="module")
def originals(tmp_path_factory):
    """A complete proof that keeps every second state; and a recording that stopped at step 8."""
    folder = tmp_path_factory.mktemp("originals")
    train(MOMENTUM, folder / "whole", every=2, keep=2)
    with pytest.raises(KeyboardInterrupt):
        train(MOMENTUM, folder / "unfinished", every=2, executor=Stop(5))
    return folder


@pytest.fixture
def whole(originals, tmp_path):
    return Path(shutil.copytree(originals / "whole", tmp_path / "whole"))


@pytest.fixture
def unfinished(originals, tmp_path):
    """With the states after 10 and 12 steps, which no line of the log names."""
    out = Path(shutil.copytree(originals / "unfinished", tmp_path / "unfinished"))
    assert {path.name for path in (out / "checkpoints").iterdir()} == {
        f"{step:012d}.safetensors" for step in range(0, 13, 2)
    }
    return out


def litter(out, names=LITTER):
    for name in names:
        (out / name).write_bytes(b"half of it")


def contents(out):
    return {path.relative_to(out).as_posix(): path.read_bytes() for path in out.rglob("*") if path.is_file()}


def removed(found, out):
    return {path.relative_to(out).as_posix() for path in found.removed}


def assert_accepted(out):
    report = check(out, MOMENTUM)
    assert report.verdict is Verdict.ACCEPT, report.reason()


def resume(out):
    train(MOMENTUM, out, every=2, resume=True)


# --- complete proofs


def test_a_complete_proof(whole):
    before = contents(whole)
    litter(whole)
    assert check(whole, MOMENTUM).verdict is Verdict.REJECT
    found = clean(whole)
    assert removed(found, whole) == set(LITTER)
    assert found.bytes == len(LITTER) * len(b"half of it")
    assert contents(whole) == before
    assert (found.complete, found.states, found.kept) == (True, 7, 4)
    assert_accepted(whole)
    assert clean(whole).removed == {}


def test_a_dry_run_changes_nothing(whole, unfinished):
    for out in (whole, unfinished):
        litter(out)
        before = contents(out)
        found = clean(out, dry_run=True)
        assert contents(out) == before
        assert clean(out).removed == found.removed
        assert contents(out) != before


def test_what_is_not_known_is_named_and_left(whole):
    (whole / "notes.txt").write_text("mine")
    (whole / "checkpoints/000000000002.safetensors").write_bytes(b"another")
    found = clean(whole)
    assert found.unknown == ["checkpoints/000000000002.safetensors", "notes.txt"]
    assert found.removed == {}
    assert (whole / "notes.txt").exists()


@pytest.mark.parametrize("name", ["genesis.json", "log.jsonl", "dataset.bin", "checkpoints/000000000004.safetensors"])
def test_nothing_is_removed_from_a_proof_that_lacks_something(name, whole):
    litter(whole)
    (whole / name).rename(whole.parent / "lost")
    before = contents(whole)
    with pytest.raises(IntegrityError, match=f"{Path(name).name}.*not there"):
        clean(whole)
    assert contents(whole) == before


# --- unfinished recordings


def test_an_unfinished_recording(unfinished):
    litter(unfinished, LITTER[:3])
    found = clean(unfinished)
    beyond = {f"checkpoints/{step:012d}.safetensors" for step in (10, 12)}
    assert removed(found, unfinished) == {*LITTER[:3], *beyond}
    assert (found.complete, found.states, found.kept) == (False, 5, 5)
    resume(unfinished)
    assert_accepted(unfinished)
    assert json.loads((unfinished / "journal.json").read_bytes())["resumes"] == [8]


def test_states_after_a_gap_stay(unfinished):
    """The missing one may come back from a copy; `pol record --resume` decides."""
    gone = unfinished / "checkpoints/000000000004.safetensors"
    data = gone.read_bytes()
    gone.unlink()
    found = clean(unfinished)
    assert removed(found, unfinished) == {f"checkpoints/{step:012d}.safetensors" for step in (10, 12)}
    assert (found.states, found.kept) == (2, 2)
    gone.write_bytes(data)
    resume(unfinished)
    assert json.loads((unfinished / "journal.json").read_bytes())["resumes"] == [8]
    assert_accepted(unfinished)


def test_a_recording_without_a_log(unfinished):
    """It may come back from a copy: nothing is removed, as without a genesis."""
    litter(unfinished, LITTER[:3])
    (unfinished / "log.jsonl").rename(unfinished.parent / "log")
    before = contents(unfinished)
    for dry_run in (True, False):
        with pytest.raises(IntegrityError, match=r"log\.jsonl: needed for an answer, and not there.*Nothing was remov"):
            clean(unfinished, dry_run=dry_run)
    assert contents(unfinished) == before
    (unfinished.parent / "log").rename(unfinished / "log.jsonl")
    assert clean(unfinished).states == 5
    resume(unfinished)
    assert json.loads((unfinished / "journal.json").read_bytes())["resumes"] == [8]
    assert_accepted(unfinished)


def test_an_attempt_before_its_genesis(tmp_path, monkeypatch):
    out = tmp_path / "proof"

    class NoControl(InProcess):
        def run(self, job):
            if type(job).__name__ == "Control":
                raise KeyboardInterrupt
            return super().run(job)

    with pytest.raises(KeyboardInterrupt):
        train(MOMENTUM, out, every=2, executor=NoControl())
    assert (out / "dataset.bin").exists()
    assert removed(clean(out), out) == {"secret.json", "journal.json", "dataset.bin"}
    train(MOMENTUM, out, every=2)
    assert_accepted(out)


@pytest.mark.parametrize("finished", [True, False])
def test_a_recording_that_is_under_way(finished, whole, unfinished):
    out = whole if finished else unfinished
    litter(out)
    before, lock = contents(out), Lock(out)
    with pytest.raises(UsageError, match="is being recorded by another process"):
        clean(out)
    assert contents(out) == before
    lock.release(remove=False)
    assert clean(out).removed


def test_what_is_no_proof(tmp_path):
    (tmp_path / "checkpoints").mkdir()
    (tmp_path / "model.tmp").write_text("mine")
    with pytest.raises(UsageError, match="not a proof directory"):
        clean(tmp_path)
    with pytest.raises(UsageError, match="no such proof directory"):
        clean(tmp_path / "nowhere")
    assert {path.name for path in tmp_path.iterdir()} == {"checkpoints", "model.tmp"}


# --- openings


@pytest.fixture
def openings(whole, tmp_path):
    """States of the proof, one that it keeps and two that it does not."""
    answer(whole, tmp_path / "openings")
    return tmp_path / "openings"


def answer(proof, out):
    with_states = LocalAuditor(MOMENTUM, executor=InProcess())
    return regenerate(proof, out, recipe=MOMENTUM, steps=[2, 4, 10], auditor=with_states)


def test_openings_can_be_made_again(whole, openings):
    (openings / "request.json").write_text("{}")
    before = contents(openings)
    found = clean(whole, openings=openings)
    names = {f"checkpoints/{step:012d}.safetensors" for step in (2, 4, 10)}
    assert removed(found, openings) == names
    assert set(contents(openings)) == {"request.json"}
    assert_accepted(whole)
    answer(whole, openings)
    assert contents(openings) == before


def test_openings_that_are_not_of_this_proof_stay(whole, openings, originals):
    folder = openings / "checkpoints"
    state = folder / "000000000002.safetensors"
    state.write_bytes(state.read_bytes()[:-1] + b"x")
    (folder / "000000000010.safetensors").rename(folder / "000000000008.safetensors")
    (folder / "000000000003.safetensors").write_bytes((folder / "000000000004.safetensors").read_bytes())
    (folder / "000000000006.safetensors").symlink_to(whole / "checkpoints/000000000004.safetensors")
    (folder / "mine.txt").write_text("mine")
    found = clean(whole, openings=openings)
    assert removed(found, openings) == {"checkpoints/000000000004.safetensors"}
    assert (whole / "checkpoints/000000000004.safetensors").exists()


def test_openings_behind_a_link_stay(whole, openings):
    (openings / "checkpoints").rename(openings.with_name("elsewhere"))
    (openings / "checkpoints").symlink_to(openings.with_name("elsewhere"))
    assert clean(whole, openings=openings).removed == {}


def test_what_a_killed_call_left_in_openings(whole, openings):
    for name in (".regenerate-dead", ".regenerate-alive"):
        (openings / name).mkdir()
        (openings / name / "000000000002.safetensors").write_bytes(b"half")
    (openings / ".regenerate-link").symlink_to(whole)
    with held(openings / ".regenerate-alive"):
        found = clean(whole, openings=openings)
    assert openings / ".regenerate-dead" in found.removed
    assert {path.name for path in openings.iterdir()} == {"checkpoints", ".regenerate-alive", ".regenerate-link"}
    assert_accepted(whole)


def test_openings_in_the_wrong_place(whole, unfinished, tmp_path):
    for folder in (whole, whole / ".", tmp_path / "nowhere"):
        with pytest.raises(UsageError, match="no folder of openings"):
            clean(whole, openings=folder)
    with pytest.raises(UsageError, match="the recording is not finished"):
        clean(unfinished, openings=tmp_path)


def test_a_folder_is_held_while_states_are_taken(whole, tmp_path):
    """So that nobody takes it for a leftover."""
    seen = []

    class Looking(InProcess):
        def run(self, job):
            for folder in (tmp_path / "o").glob(".regenerate-*"):
                with pytest.raises(UsageError, match="in use"), held(folder):
                    pass
                seen.append(folder)
            return super().run(job)

    regenerate(whole, tmp_path / "o", recipe=MOMENTUM, steps=[2], auditor=LocalAuditor(MOMENTUM, executor=Looking()))
    assert seen


# --- the command


def test_the_command(whole, openings, capsys):
    litter(whole)
    words = ["gc", str(whole), "--openings", str(openings)]
    assert main([*words, "--dry-run", "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert (told["dry_run"], told["complete"], told["states"], told["kept"]) == (True, True, 7, 4)
    assert len(told["removed"]) == 7
    assert told["bytes"] == sum(one["bytes"] for one in told["removed"])
    assert all(Path(one["path"]).exists() for one in told["removed"])
    assert main(words) == 0
    out = capsys.readouterr().out
    assert out.startswith("Removed 7 items, ")
    assert "all 7 recorded states" in out
    assert "4 kept, 3 to be taken again from the kept one before" in out
    assert main(words) == 0
    assert capsys.readouterr().out.startswith("Nothing to remove")
    (whole / "notes.txt").write_text("mine")
    assert main(words[:2]) == 0
    assert "notes.txt: a verifier refuses the proof while this is there" in capsys.readouterr().out
    (whole / "log.jsonl").unlink()
    assert main([*words[:2], "--json"]) == 3
    assert json.loads(capsys.readouterr().out)["kind"] == "IntegrityError"


def test_the_command_before_anything_is_recorded(unfinished, capsys):
    for name in itertools.chain(unfinished.glob("*.json*"), (unfinished / "checkpoints").iterdir()):
        name.unlink()
    assert main(["gc", str(unfinished)]) == 0
    assert "no state is recorded yet" in capsys.readouterr().out
