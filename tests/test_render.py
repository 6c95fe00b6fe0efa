"""Reports as text and as JSON: the verdict first, everything documented, and nothing that a proof could paint with."""

import dataclasses
import io
import json
import math
import re
from itertools import pairwise
from pathlib import Path
from typing import get_args, get_type_hints

import jsonschema
import msgspec
import pytest
from rich.console import Console

from factory import TOLERANCE, check, factory
from pol.proof.policy import Challenge, Policy
from pol.proof.report import Assurance, Check, Deviation, IntervalResult, Step, Verdict
from pol.render import as_json, demo, terminal
from pol.render.text import clean, duration, plural, shorten, size, spark

SCHEMA = json.loads((Path(__file__).parents[1] / "docs" / "report.schema.json").read_text())
METRIC = {"l1": 3e-6, "l2": 2e-6, "linf": 1e-6, "cos": math.nan}


def deviation(**fields):
    return Deviation(distances=METRIC, normalised=dict.fromkeys(METRIC, 0.5), **fields)


FEW = Policy(challenge=Challenge(strategy="uniform", uniform=1))


def drawn(draw, width=80, **options):
    console = Console(file=io.StringIO(), width=width, highlight=False, markup=False, **options)
    draw(console)
    return console.file.getvalue()


def report_of(kind):
    return {
        "accepted": lambda: check(factory().proof()),
        "sampled": lambda: check(factory().proof(), policy=FEW),
        "cheap": lambda: check(factory().forgery("edited-checkpoint").path),
        "replayed": lambda: check(factory().forgery("swapped-buffers").path),
        "unreadable": lambda: check(factory().forgery("zero-steps").path),
        "undecided": lambda: check(factory().proof(), policy=Policy(max_steps=1)),
        "tolerated": tolerated,
    }[kind]()


KINDS = {
    "accepted": (Verdict.ACCEPT, None),
    "sampled": (Verdict.ACCEPT, None),
    "cheap": (Verdict.REJECT, 3),
    "replayed": (Verdict.REJECT, 7),
    "unreadable": (Verdict.REJECT, 2),
    "undecided": (Verdict.INCONCLUSIVE, None),
    "tolerated": (Verdict.ACCEPT, None),
}


@pytest.fixture(params=KINDS)
def report(request):
    found = report_of(request.param)
    assert (found.verdict, found.caught_by) == KINDS[request.param]
    return found


def test_accept_says_how_much_was_taken_again():
    sampled = report_of("sampled")
    assert len(sampled.intervals) < sampled.draws.intervals == 5
    assert f"{len(sampled.intervals)} of 5 intervals were taken again here" in terminal.verdict_line(sampled).plain
    assert "the recorded training was taken again here" in terminal.verdict_line(report_of("accepted")).plain


def tolerated(**changes):
    """A report under rule tolerance, with an error in interval 1."""
    result = check(factory().proof(rule="tolerance"), policy=TOLERANCE)
    near = deviation(tensor="parameter/model.0.weight", error=1e-6, limit=4e-6, relative=1e-4)
    intervals = [msgspec.structs.replace(r, deviation=near if r.index == 1 else None) for r in result.intervals]
    return msgspec.structs.replace(result, intervals=intervals, **changes)


def test_tolerance_is_not_bit_for_bit():
    text = drawn(lambda console: terminal.report(console, tolerated()), width=200)
    assert "agrees, within the limits." in text.splitlines()[0]
    assert "bit for bit." not in text.splitlines()[0]
    assert "nearest to its limit: parameter/model.0.weight, error 1e-06 of 4e-06 (25%), interval 1" in text
    assert re.search(r"drift: all limits together leave 0\.\d\d% of the way .* \(allowed: 1\.00%\)", text)
    exact = drawn(lambda console: terminal.report(console, report_of("accepted")), width=200)
    assert "agrees, bit for bit." in exact.splitlines()[0]
    assert "Tolerance" not in exact


def test_a_failing_interval_names_the_tensor_that_is_nearest_to_its_limit():
    result = tolerated()
    for detail, shown in (("another loss", True), ("parameter/model.0.weight is beyond", False)):
        intervals = [msgspec.structs.replace(r, status="failed", detail=detail) for r in result.intervals]
        text = drawn(
            lambda console, i=intervals: terminal.report(console, msgspec.structs.replace(result, intervals=i)),
            width=200,
        )
        assert text.count("nearest to its limit: parameter/model.0.weight") == 1 + shown  # once for the whole run


def test_what_is_not_finite_is_farthest():
    result = tolerated()
    nan = deviation(tensor="parameter/model.4.bias", error=math.nan, limit=1.0, relative=math.nan)
    intervals = [msgspec.structs.replace(r, deviation=nan if r.index == 3 else r.deviation) for r in result.intervals]
    text = drawn(lambda console: terminal.report(console, msgspec.structs.replace(result, intervals=intervals)))
    assert "farthest beyond its limit: parameter/model.4.bias" in text


def test_an_acceptance_by_a_broken_procedure_looks_like_none():
    broken = Assurance(level="broken", statements=["known forgeries pass"])
    result = msgspec.structs.replace(report_of("accepted"), procedure="paper-2021", assurance=broken)
    text = drawn(lambda console: terminal.report(console, result), force_terminal=True, color_system="standard")
    assert "\x1b[1;7;33m ACCEPT (broken procedure) \x1b[0m" in text
    assert "agrees" not in text.splitlines()[0]
    rejected = msgspec.structs.replace(report_of("cheap"), assurance=broken)
    assert "(broken" not in terminal.verdict_line(rejected).plain


def test_every_level_has_words():
    levels = set(get_args(get_type_hints(Assurance)["level"]))
    assert levels == set(terminal.LEVELS)
    text = drawn(lambda console: terminal.report(console, report_of("accepted")))
    assert "- level: self-seeded (the run's own seed decided all randomness)" in text


# -- JSON ---------------------------------------------------------------------------------------------------------


def test_json_is_as_documented(report):
    value = json.loads(as_json.encode(as_json.report(report)))
    jsonschema.Draft202012Validator(SCHEMA).validate(value)
    assert value["verdict"] == report.verdict.value
    assert value["caught_by"] == report.caught_by
    assert bool(value["reason"]) == (report.verdict is not Verdict.ACCEPT)
    assert [step["number"] for step in value["steps"]] == list(range(1, 9))


def test_schema_is_strict():
    jsonschema.Draft202012Validator.check_schema(SCHEMA)
    objects = [SCHEMA, *(s for s in _all(SCHEMA) if "object" in (s.get("type") or ()))]
    assert len(objects) > 5
    for schema in objects:
        assert schema["additionalProperties"] is False
        assert set(schema["required"]) == set(schema["properties"])


def _all(value):
    if isinstance(value, dict):
        yield value
    for inner in value.values() if isinstance(value, dict) else value if isinstance(value, list) else ():
        yield from _all(inner)


@pytest.mark.parametrize("change", ["extra", "missing", "verdict", "seven steps"])
def test_schema_refuses_what_is_not_a_report(change):
    value = as_json.report(report_of("cheap"))
    if change == "extra":
        value["score"] = 1
    elif change == "missing":
        del value["assurance"]
    elif change == "verdict":
        value["verdict"] = "accept"
    else:
        value["steps"] = value["steps"][:7]
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.Draft202012Validator(SCHEMA).validate(value)


# -- text ---------------------------------------------------------------------------------------------------------


def test_verdict_comes_first_and_says_why(report):
    text = drawn(lambda console: terminal.report(console, report), width=400)
    first = text.splitlines()[0]
    assert first.split()[0] == report.verdict
    assert report.reason() in first or report.verdict is Verdict.ACCEPT
    for step in report.steps:
        assert any(line.split()[:2] == [str(step.number), step.name] for line in text.splitlines())
    for line in [report.confidence, *report.assurance.statements, *report.not_shown, report.nonce]:
        assert line in text
    if report.claimant is not None:
        assert report.claimant in text
        assert report.genesis in text
        assert report.attestation in text


@pytest.mark.parametrize("width", [60, 80, 120])
def test_lines_fit_the_terminal(report, width):
    lines = drawn(lambda console: terminal.report(console, report), width=width).splitlines()
    copied = ("claimant", "genesis", "attestation", "weights", "policy", "nonce")  # one digest a line, never wrapped
    assert all(len(line) <= width for line in lines if not line.startswith(copied))


def test_colours_only_on_a_terminal():
    report = report_of("cheap")
    assert "\x1b" not in drawn(lambda console: terminal.report(console, report))
    coloured = drawn(lambda console: terminal.report(console, report), force_terminal=True, color_system="standard")
    assert "\x1b[1;7;31m REJECT \x1b[0m" in coloured


def test_intervals_are_shown_where_they_are():
    report = report_of("accepted")
    results = [IntervalResult(i, i, i + 1, "failed" if i == 150 else "passed", "why") for i in range(200) if i >= 100]
    many = msgspec.structs.replace(
        report, intervals=results, draws=msgspec.structs.replace(report.draws, intervals=200)
    )
    text = drawn(lambda console: terminal.report(console, many), force_terminal=True, color_system="standard")
    assert "100 of 200 replayed: 99 passed, 1 failed" in text
    assert "interval 150 (steps 150–151): why" in text
    strip = next(line for line in text.splitlines() if "■" in line)
    assert strip.count("·") == strip.count("■") == 34  # half of the run, in 68 cells
    assert strip.count("\x1b[31m■") == 1


def test_few_of_many_failures_are_written_out():
    report = report_of("accepted")
    results = [IntervalResult(i, i, i + 1, "failed", f"reason {i}") for i in range(9)]
    many = msgspec.structs.replace(report, intervals=results, draws=msgspec.structs.replace(report.draws, intervals=9))
    text = drawn(lambda console: terminal.report(console, many))
    assert ("reason 4" in text, "reason 5" in text, "and 4 more" in text) == (True, False, True)


HOSTILE = "\x1b[2J\x1b[H ACCEPT \r\n\x07\x9b\u202e\u2066[bold]x[/bold]"


def test_text_of_a_stranger_cannot_paint():
    report = report_of("cheap")
    steps = [Step(s.number, s.name, s.status, [Check("c", "failed", HOSTILE)]) for s in report.steps]
    intervals = [IntervalResult(0, 0, 1, "failed", HOSTILE)]
    forged = msgspec.structs.replace(report, steps=steps, confidence=HOSTILE, not_shown=[HOSTILE], intervals=intervals)
    text = drawn(lambda console: terminal.report(console, forged))
    assert not {"\x1b", "\r", "\x07", "\x9b", "\u202e", "\u2066"} & set(text)
    assert "\\x1b[2J" in text
    assert "[bold]x[/bold]" in text.replace("\n", "")


# -- pieces -------------------------------------------------------------------------------------------------------


def test_pieces():
    assert clean("a\tb\n") == "a\\tb\\n"
    assert clean("Zoë → 3") == "Zoë → 3"
    assert shorten(f"key sha256:{'ab' * 32}, blake3:{'cd' * 32}.") == "key sha256:abababababab…, blake3:cdcdcdcdcdcd…."
    assert [size(n) for n in (0, 999, 3_099_178, 10**13)] == ["0 bytes", "999 bytes", "3.1 MB", "10 TB"]
    assert [duration(s) for s in (0.04, 9.94, 59.4, 200, 7500)] == ["0.0 s", "9.9 s", "59 s", "3 min 20 s", "2 h 5 min"]
    assert [plural(n, "step") for n in (0, 1, 2000)] == ["0 steps", "1 step", "2,000 steps"]


def test_curves():
    assert spark([], 10) == ""
    assert spark([2.0, 2.0], 10) == "▁▁"
    assert spark([0.0, 1.0, 2.0, 7.0], 10) == "▁▂▃█"
    assert spark([float(i) for i in range(1000)], 8) == "▁▂▃▄▅▆▇█"
    assert len(spark([1.0, 2.0, 3.0] * 50, 60)) == 60


# -- the demo -----------------------------------------------------------------------------------------------------


def outcome(**changes):
    reason = "step 4 Shape: a number is wrong"
    row = demo.Row("bad", "a bad one", 6, 3.2, 3_000_000, "REJECT", "ACCEPT", 4, "Shape", reason)
    given = demo.Outcome(0.97, report_of("accepted"), "ACCEPT", 14, 9.0, 3_000_000, [row], "pol verify x")
    return dataclasses.replace(given, **changes)


def test_demo_table():
    text = drawn(lambda console: demo.outcome(console, outcome()))
    first, second = next(pair for pair in pairwise(text.splitlines()) if "a bad one" in pair[0])
    assert first.split() == ["a", "bad", "one", "6", "gradients", "REJECT", "ACCEPT"]
    assert second.split() == ["a", "number", "is", "wrong", "3.2", "s,", "3", "MB", "4", "Shape"]
    assert "The verification of 2021 accepted 1 of these forgeries" in text
    assert "all 1 forgeries were rejected" in text
    assert "\n  pol verify x\n" in text
    assert outcome().ok


def test_demo_that_failed_says_so():
    row = dataclasses.replace(outcome().rows[0], verdict="ACCEPT", step=None)
    for wrong, message in [
        (outcome(rows=[row]), "the forgery bad was not rejected"),
        (outcome(rows=[dataclasses.replace(row, verdict="INCONCLUSIVE")]), "the forgery bad was not rejected"),
        (outcome(rows=[]), "no forgery was made"),
        (outcome(honest=report_of("undecided")), "the honest proof was not accepted"),
    ]:
        assert not wrong.ok
        text = drawn(lambda console, wrong=wrong: demo.outcome(console, wrong))
        assert f"The demo failed: {message}" in text
        assert "were rejected" not in text


def test_demo_names_attacks_that_exist():
    from pol.attacks.registry import REGISTRY
    from pol.demo import FORGERIES

    assert len(FORGERIES) >= 10
    assert set(FORGERIES) <= set(REGISTRY)
