"""``make bench``: what it counts, that it goes on where it stopped, and that the docs show what was measured.

A run at tiny sizes shows that everything works. Its times are never tested.
"""

import hashlib
import subprocess
import sys
import threading
import time
from pathlib import Path
from types import SimpleNamespace
from xml.etree import ElementTree

import msgspec
import pytest
import torch
from benchmarks import __main__ as program
from benchmarks import alternating, figure, hashing, loops, measure, table, targets
from benchmarks.cases import BARE, FULL, LAST, METHOD2021, QUICK, RECORDER, SHA256, Schedule, rounds
from benchmarks.overhead import at, bare_step, interval_bytes, overheads
from benchmarks.parts import BESIDE, HOOK, PARTS
from benchmarks.result import Audit, Block, Hashing, Made, Measured, Memory, Planned, Recording, Results, Spread
from benchmarks.threads import Beside

from pol.replay.engine import Frame, Position, advance
from pol.replay.randomness import Streams

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs" / "benchmarks"


# -- from blocks to overheads -------------------------------------------------------------------------------------


def block(arm, seconds, *, outside=0.0, beside=0.0, steps=2):
    """``seconds`` of a step, of which ``outside`` are not the recipe's; ``beside`` of a step, too."""
    inside = seconds - outside
    return Block(arm=arm, steps=steps, inside=inside * steps, outside=outside * steps, beside=beside * steps)


FILES = {"checkpoints/000000000000.safetensors": 7, "checkpoints/000000000009.safetensors": 9, "log.jsonl": 90}


def recording(blocks, *, every=1, keep=LAST, files=None, parts=None, signing=0.0):
    return Recording(
        every=every, keep=keep, blocks=blocks, parts=parts or {}, recording_cpu=signing, files=files or FILES,
        parameters=3, state_bytes=1000, memory=1, recording_memory=1,
    )  # fmt: skip


def only(found, arm=RECORDER):
    (one,) = (one for one in overheads(found, cores=2) if one.arm == arm)
    return one


def test_a_block_is_compared_with_the_bare_ones_beside_it():
    blocks = [block(BARE, 1.0), block(RECORDER, 1.5), block(BARE, 2.0), block(RECORDER, 3.0), block(BARE, 3.0)]
    whole = only(recording(blocks)).whole
    assert (whole.low, whole.high, whole.count) == (pytest.approx(1.5 / 1.5 - 1), pytest.approx(3.0 / 2.5 - 1), 2)


def test_clocks_count_what_the_training_waits_for_and_a_share_of_what_others_take():
    blocks = [
        block(BARE, 1.0, outside=0.1),
        block(RECORDER, 5.0, outside=0.3, beside=0.2),
        block(BARE, 1.0, outside=0.1),
    ]
    one = only(recording(blocks, parts={HOOK: 0.01, "fetch": 9.0}, signing=0.1))
    assert one.waiting == pytest.approx(0.3 - 0.1 + 0.01)
    assert one.beside == pytest.approx(0.2 + 0.1)
    assert one.clocked.median == pytest.approx(0.21 + 0.3 / 2)  # of a bare step of 1 s


def test_other_arms_have_no_part_of_the_recorder():
    blocks = [block(BARE, 1.0), block(METHOD2021, 2.0, outside=1.0), block(BARE, 1.0)]
    one = only(recording(blocks, parts={HOOK: 0.5}, signing=0.5), METHOD2021)
    assert one.clocked.median == pytest.approx(1.0)


@pytest.mark.parametrize(("steps", "resolved"), [([1.1, 1.1, 1.12, 1.1], True), ([0.9, 1.3, 1.0, 1.2], False)])
def test_whole_blocks_count_only_where_they_agree(steps, resolved):
    blocks = [block(BARE, 1.0)]
    for seconds in steps:
        blocks += [block(RECORDER, seconds, outside=0.05), block(BARE, 1.0)]
    one = only(recording(blocks))
    assert one.resolved == resolved
    assert one.counts == (one.whole if resolved else one.clocked)


def test_two_values_never_agree():
    blocks = [block(BARE, 1.0), block(RECORDER, 2.0), block(BARE, 1.0), block(RECORDER, 2.0), block(BARE, 1.0)]
    assert not only(recording(blocks)).resolved


def test_blocks_are_taken_together_until_a_state_was_kept():
    blocks = [block(BARE, 1.0)]
    for seconds in (1.0, 1.4, 1.0, 1.2):  # every second one writes: K = 2 intervals of k = 2, a block being one
        blocks += [block(RECORDER, seconds), block(BARE, 1.0)]
    whole = only(recording(blocks, every=2, keep=2)).whole
    assert (whole.count, whole.low, whole.high) == (2, pytest.approx(0.1), pytest.approx(0.2))


def test_at_ten_times_the_interval_a_tenth():
    blocks = [block(BARE, 1.0), block(SHA256, 1.4, outside=0.4), block(BARE, 1.0)]
    one = at(only(recording(blocks, every=10), SHA256), 100)
    assert (one.every, one.whole, one.clocked.median) == (100, None, pytest.approx(0.04))


def test_bytes_of_an_interval_are_its_share_of_a_kept_state_and_its_record():
    files = {f"checkpoints/{step:012d}.safetensors": size for step, size in ((0, 7), (20, 500), (40, 700), (47, 900))}
    found = recording([], every=10, keep=2, files={**files, "log.jsonl": 50, "genesis.json": 10**6})
    assert interval_bytes(found) == pytest.approx((500 + 700) / 2 / 2 + 50 / 5)
    assert interval_bytes(recording([])) == pytest.approx(10)  # first and last only


def test_spread_is_of_the_middle_half_and_of_few_values_the_range():
    assert Spread.of([5.0, 1.0, 2.0]) == Spread(median=2.0, low=1.0, high=5.0, count=3)
    assert Spread.of([0.0, 1.0, 2.0, 3.0, 100.0]) == Spread(median=2.0, low=1.0, high=3.0, count=5)
    with pytest.raises(ValueError, match="nothing"):
        Spread.of([])


# -- arms and clocks ----------------------------------------------------------------------------------------------


def test_everything_in_the_state_dicts_is_hashed():
    model = torch.nn.Linear(2, 1, bias=False)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    model(torch.ones(1, 2)).sum().backward()
    optimizer.step()
    parts = SimpleNamespace(model=model, optimizer=optimizer)
    moment = optimizer.state[model.weight]["momentum_buffer"]
    assert {tensor.data_ptr() for tensor in loops.tensors(parts)} == {model.weight.data_ptr(), moment.data_ptr()}
    before = loops.hash_all(parts)
    assert before == hashlib.sha256(b"".join(t.detach().numpy().tobytes() for t in loops.tensors(parts))).digest()
    moment[0, 1] += 1
    assert loops.hash_all(parts) != before


def busy(seconds):
    until = time.thread_time() + seconds
    while time.thread_time() < until:
        pass


def test_cpu_time_of_other_threads_is_counted_and_that_of_training_is_not():
    beside = Beside(lambda: busy(0.05))
    before = beside.spent()
    busy(0.05)
    beside.look()
    assert beside.spent() == pytest.approx(before, abs=0.02)
    done, leave = threading.Event(), threading.Event()
    thread = threading.Thread(target=lambda: (busy(0.1), done.set(), leave.wait()))
    thread.start()
    done.wait()
    beside.look()
    assert beside.spent() - before >= 0.1
    leave.set()
    thread.join()
    beside.look()
    assert beside.spent() - before >= 0.1, "what an ended thread took is not forgotten"


@pytest.mark.parametrize(("name", "where"), PARTS.items())
def test_every_part_of_the_recorder_is_there(name, where):
    assert callable(getattr(*where)), name


def test_hashing_is_measured_in_every_way():
    found = hashing.rates(2**16, 2, 2)
    assert {hashing.OURS, hashing.LIBRARY, hashing.NEIGHBOUR, hashing.COPY} <= set(found.rates)
    assert all(rate.low > 0 and rate.count == 2 for rate in found.rates.values())


SETTINGS = {"num_epochs": 2, "batch_size": 500, "width": 4}  # 6 steps


def ending(tmp_path, schedule):
    streams, arguments = (
        Streams(bytes(32)),
        {"schedule": msgspec.to_builtins(schedule), "out": str(tmp_path / "out.json")},
    )
    streams.init()
    made = alternating.Digits(settings=SETTINGS, **arguments)
    return advance(lambda: made, Frame(streams), Position(), None).digests_now()


def test_blocks_change_nothing_of_what_is_recorded(tmp_path, monkeypatch):
    monkeypatch.setattr(alternating, "Clocks", lambda: SimpleNamespace(seconds={}, reset=lambda: None))
    plain = ending(tmp_path, Schedule(1, LAST, [], cycles=0, warm=20))
    assert not (tmp_path / "out.json").exists(), "there was nothing to measure"
    assert ending(tmp_path, Schedule(1, LAST, rounds(1, 1, 1, METHOD2021, SHA256), cycles=2, warm=2)) == plain
    blocks = msgspec.json.decode((tmp_path / "out.json").read_bytes())["blocks"]
    assert [(b["arm"], b["steps"]) for b in blocks] == [
        (BARE, 1),
        *[(RECORDER, 1), (BARE, 1), (METHOD2021, 1), (BARE, 1), (SHA256, 1), (BARE, 1)] * 2,
    ]


@pytest.mark.parametrize("case", [*FULL, *QUICK], ids=lambda case: case.name)
def test_schedules_are_whole(case):
    for schedule in case.schedules:
        for arm, steps in schedule.cycle:
            assert arm in (BARE, RECORDER) or steps % schedule.every == 0, "an arm that never does what it is for"
        recorded = sum(steps for arm, steps in schedule.cycle if arm == RECORDER)
        assert schedule.keep == LAST or recorded % (schedule.every * schedule.keep) == 0, "shares of kept states"


# -- targets, tables, the figure ----------------------------------------------------------------------------------


def results(*, overhead=0.05, wall=10.5, cases=("text", "resnet")):
    made = Made(
        command="c", started="s", pol="p", python="y", torch="t", processor="x", system="L", cores=2, threads=2,
        load_before=0.1, load_after=0.1, quick=False,
    )  # fmt: skip
    rate = {
        name: Spread(median=1e9, low=1e9, high=1e9, count=3)
        for name in (hashing.OURS, hashing.LIBRARY, hashing.NEIGHBOUR, hashing.COPY, hashing.READ)
    }
    blocks = [block(BARE, 1.0)]
    for _ in range(4):
        blocks += [block(RECORDER, 1 + overhead, outside=overhead), block(BARE, 1.0)]
        blocks += [block(METHOD2021, 1.5, outside=0.5), block(BARE, 1.0)]
    steps = Spread(median=1.0, low=1.0, high=1.0, count=4)
    audit = Audit(
        every=10, intervals=10, steps=100, bare=steps, verify={"1": wall}, inner={"1": {"report": 9.0, "replay": 8.0}},
        method2021=11.0, one_off=3.0,
    )  # fmt: skip
    return Results(
        measured=[
            Measured(
                case=case, title=case, made=made, recordings=[recording(blocks)], audit=audit,
                memory=Memory(peak={BARE: 10**6, RECORDER: 2 * 10**6, METHOD2021: 10**6, SHA256: 10**6}, recording=5),
                hashing=Hashing(size=2**20, threads=2, rates=rate),
                planned=Planned(overheads={f"k=1,K={LAST}": 0.06, "k=7,K=7": 1.0}, audit=8.4),
            )
            for case in cases
        ]
    )  # fmt: skip


def test_targets_are_met_or_missed_or_not_known():
    rows = targets.rows(results())
    assert [row.met for row in rows] == [True, None, False, None, True, None, True]
    assert targets.rows(results(overhead=0.01))[2].met
    assert targets.rows(results(wall=11.5))[4].met is False
    assert {row.met for row in targets.rows(results(cases=("digits",)))[:6]} == {None}


def test_a_missed_target_says_where_the_time_goes():
    text = table.markdown(results(wall=11.5))
    assert "**Not met: ResNet-20, k = 1: overhead, by clocks.** Of a bare step of 1e+03 ms: the training waits" in text
    assert "The limit: hashing 0.001 MB once every 1 steps" in text
    assert "Of 11.5 s (10.0 s of bare steps): 2.5 s until the verification begins, 1.0 s" in text
    assert text.count("Not met") == 2
    assert "Not met" not in table.markdown(results(overhead=0.001))


def test_plans_stand_beside_what_was_measured():
    text = table.plans(results().measured[0], results().measured[0].planned)
    assert "| overhead, k = 1, first and last | +6 % | +5 % | 1.010 of the run's time |" in text
    assert "| the verification, 1 process of one thread | 8.4 s | 9.0 s | 0.93 |" in text
    assert "+100 %" not in text, "of a recording that was not made"


def test_the_figure_has_a_mark_for_every_arm():
    found = results()
    svg = ElementTree.fromstring(figure.figure(found))
    marks = [e for e in svg.iter() if e.tag.rpartition("}")[2] in ("circle", "rect", "polygon")]
    arms = sum(len(targets.arms(measured)) for measured in found.measured)
    assert len(marks) == 1 + len(figure.COLOURS) + 1 + arms  # the ground, the legend, and one each


def test_trainings_that_were_not_measured_stay_as_they_are(tmp_path):
    program._write(tmp_path, results(cases=("text", "resnet")))
    again = program._write(tmp_path, results(overhead=0.5, cases=("resnet",)))
    assert [measured.case for measured in again.measured] == ["text", "resnet"]
    assert bare_step(again.measured[0].recordings[0]).median == 1.0
    assert targets.rows(again)[0].measured == pytest.approx(0.05)
    assert targets.rows(again)[2].measured == pytest.approx(0.5)
    assert msgspec.json.decode((tmp_path / "overhead.json").read_bytes(), type=Results) == again


def test_tables_are_written_anew_without_measuring(tmp_path, monkeypatch):
    program._write(tmp_path, results())
    for name in ("overhead.md", "overhead.svg"):
        (tmp_path / name).write_text("old")
    page = tmp_path / "page.md"
    page.write_text("<!-- overhead: begin -->\n<!-- overhead: end -->")
    monkeypatch.setattr(sys, "argv", ["benchmarks", "--render", str(tmp_path), "--page", str(page)])
    program.main()
    assert (tmp_path / "overhead.md").read_text() == table.page(results(), "overhead.svg")
    assert (tmp_path / "overhead.svg").read_text() == figure.figure(results())
    assert table.targets(results()) in page.read_text()


# -- going on -----------------------------------------------------------------------------------------------------


class Interrupted(Exception):
    pass


def taking(monkeypatch, done, fails_at=None):
    def take(name):
        if name == fails_at:
            raise Interrupted
        done.append(name)
        return {"value": name}

    def units(case, _):
        return [measure.Unit(key, key, 1.0, lambda key=key: take(key)) for key in ("one", "two")]

    monkeypatch.setattr(measure, "units", units)


def going(path, begun, monkeypatch, said, **how):
    done = []
    taking(monkeypatch, done, **how)
    kept = measure.Kept(path, begun, said.append)
    options = measure.Options(2, None, True, said.append)
    return done, lambda: (measure.measure([QUICK[0]], options, kept), kept)


def test_an_interrupted_run_goes_on_with_what_is_missing(tmp_path, monkeypatch):
    path, said = tmp_path / "kept.json", []
    done, run = going(path, {"code": "a"}, monkeypatch, said, fails_at="two")
    with pytest.raises(Interrupted):
        run()
    assert done == ["one"]
    done, run = going(path, {"code": "a"}, monkeypatch, said)
    found, kept = run()
    assert done == ["two"]
    assert found == {QUICK[0].name: {"one": {"value": "one"}, "two": {"value": "two"}}}
    assert any("going on: 1 measurements" in line for line in said)
    kept.done()
    assert not path.exists()


def test_with_other_code_everything_is_measured_anew(tmp_path, monkeypatch):
    path, said = tmp_path / "kept.json", []
    _, run = going(path, {"code": "a"}, monkeypatch, said, fails_at="two")
    with pytest.raises(Interrupted):
        run()
    done, run = going(path, {"code": "b"}, monkeypatch, said)
    run()
    assert done == ["one", "two"]
    assert any("anew" in line for line in said)


# -- the program --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "wrong"),
    [
        (["--only", "nothing"], "invalid choice: 'nothing' (choose from 'text', 'resnet', 'digits')"),
        (["--only", "resnet"], "nothing is left to measure: --data FILE.npz"),
        (["--data", "missing.npz"], "--data missing.npz: no such file"),
    ],
)
def test_what_cannot_be_measured_is_a_usage_error(arguments, wrong, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["benchmarks", *arguments])
    with pytest.raises(SystemExit) as ended:
        program.main()
    assert ended.value.code == 2
    assert wrong in capsys.readouterr().err


def test_without_its_data_a_training_is_left_out_and_the_output_says_so(capsys):
    parser = program._parser()
    cases, left_out = program._chosen(parser, parser.parse_args([]))
    assert [case.name for case in cases] == ["text", "digits"]
    assert "is left out" in capsys.readouterr().err
    text = table.markdown(Results(measured=results(cases=("text",)).measured, left_out=left_out))
    assert "*ResNet-20 on CIFAR-10, SGD* was not measured: its data were not given" in text


@pytest.fixture(scope="module")
def quick(tmp_path_factory):
    """Everything at tiny sizes, once."""
    folder = tmp_path_factory.mktemp("quick")
    page = folder / "page.md"
    page.write_text("before\n<!-- overhead: begin -->\nold\n<!-- overhead: end -->\nafter\n")
    command = [sys.executable, "-m", "benchmarks", "--quick", "--write", folder, "--page", page]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return folder, done


@pytest.mark.slow
@pytest.mark.timeout(1800)  # some twenty starts of training processes: two minutes alone, many beside other tests
def test_the_quick_run_measures_everything(quick):
    folder, _ = quick
    found = msgspec.json.decode((folder / "overhead.json").read_bytes(), type=Results)
    assert [measured.case for measured in found.measured] == [case.name for case in QUICK]
    for measured, case in zip(found.measured, QUICK, strict=True):
        assert measured.made.quick
        for one, schedule in zip(measured.recordings, case.schedules, strict=True):
            counted = [(block.arm, block.steps) for block in one.blocks]
            assert counted[1:] == [tuple(each) for each in schedule.cycle] * schedule.cycles
            assert all(block.inside > 0 and block.outside > 0 for block in one.blocks)
            unused = {name for name in BESIDE if schedule.keep == LAST}
            assert {name for name, seconds in one.parts.items() if not seconds} == unused, "a part never entered"
            assert "log.jsonl" in one.files
            assert interval_bytes(one) > 0
        assert set(measured.memory.peak) == {BARE, RECORDER, METHOD2021, SHA256}
        assert (measured.audit is not None) == bool(case.audit)
        assert set(measured.planned.overheads) == {schedule.key for schedule in case.schedules}
        assert all(overhead > 0 for overhead in measured.planned.overheads.values())
        assert (measured.planned.audit is not None) == bool(case.audit)
        if measured.audit is not None:
            assert measured.audit.intervals == -(-measured.audit.steps // measured.audit.every)
            assert "1" in measured.audit.verify


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_the_quick_run_writes_tables_and_a_figure(quick):
    folder, done = quick
    found = msgspec.json.decode((folder / "overhead.json").read_bytes(), type=Results)
    assert (folder / "overhead.md").read_text() == table.page(found, "overhead.svg")
    assert "these numbers mean nothing" in (folder / "overhead.md").read_text()
    assert (folder / "overhead.svg").read_text() == figure.figure(found)
    assert (folder / "page.md").read_text().startswith("before\n<!-- overhead: begin -->\n|  | to beat |")
    assert "## Targets" in done.stdout
    assert "left)" in done.stderr


# -- the docs -----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def checked_in():
    return msgspec.json.decode((DOCS / "overhead.json").read_bytes(), type=Results)


def test_the_page_and_the_figure_show_what_was_measured(checked_in):
    assert (DOCS / "overhead.md").read_text() == table.page(checked_in, "overhead.svg")
    assert (DOCS / "overhead.svg").read_text() == figure.figure(checked_in)
    assert not any(measured.made.quick for measured in checked_in.measured)


@pytest.mark.parametrize("page", [ROOT / "README.md", ROOT / "docs" / "benchmarks.md"], ids=lambda page: page.name)
def test_pages_show_the_targets_as_they_were_measured(page, checked_in):
    _, begun, rest = page.read_text().partition("<!-- overhead: begin -->\n")
    shown, ended, _ = rest.partition("\n<!-- overhead: end -->")
    assert begun
    assert ended
    assert shown == table.targets(checked_in)
