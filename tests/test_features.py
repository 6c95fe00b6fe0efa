"""docs/replayable.md says of every feature what recording and verifying its recipe finds."""

import re
from pathlib import Path

import pytest
from benchmarks import page
from benchmarks.features import FEATURES, LONGEST, ROOT, Feature, attempt, markdown, one_line, table_row

from test_engine import one_thread  # noqa: F401  # the fixture is used by being here

PAGE = ROOT / "docs" / "replayable.md"
ROW = re.compile(r"\| (.*?) \| `(zoo_\w+\.py:\w+)` \| (\w+) \| (.*) \|")
ROWS = [match.groups() for line in PAGE.read_text().splitlines() if (match := ROW.fullmatch(line))]


def test_the_page_has_every_feature_and_no_other():
    """In the order of the list, with the verdict that is expected: run the command after adding a row."""
    expected = [(one.name, one.recipe, "refused" if one.refused else "exact") for one in FEATURES]
    assert [row[:3] for row in ROWS] == expected
    headings = re.findall(r"^### (.*)$", PAGE.read_text(), re.MULTILINE)
    assert headings == list(dict.fromkeys(one.group for one in FEATURES))


def test_features_are_named_once():
    assert len({(one.group, one.name) for one in FEATURES}) == len({one.recipe for one in FEATURES}) == len(FEATURES)


@pytest.mark.parametrize(
    "feature",
    [
        pytest.param(one, marks=[pytest.mark.slow] if one.compiles else [], id=one.recipe)
        for one in FEATURES
        if one.refused
    ],
)
def test_a_refused_feature_is_refused_and_says_why(feature):
    found = attempt(feature)
    assert found.verdict == "refused"
    (shown,) = (row[3] for row in ROWS if row[1] == feature.recipe)
    assert table_row(found).endswith(f"| refused | {shown} |")


@pytest.mark.parametrize(
    "feature",
    [
        pytest.param(one, marks=[pytest.mark.slow] if number % 10 or one.compiles else [], id=one.recipe)
        for number, one in enumerate(one for one in FEATURES if not one.refused)
    ],
)
def test_an_exact_feature_is_exact(feature):
    """Every step is replayed; a tenth of these without the slow ones, since other tests take the recipes, too."""
    found = attempt(feature)
    assert (found.verdict, found.message) == ("exact", "")
    assert found.steps == found.intervals > 0
    (shown,) = (row[3] for row in ROWS if row[1] == feature.recipe)
    assert table_row(found).endswith(f"| exact | {shown} |")
    assert shown.startswith(f"{found.intervals} of {found.steps} steps")


def test_what_is_not_accepted_is_not_called_exact():
    """The table says what the verification said."""
    found = attempt(Feature("Group", "constant weights", "zoo_refused.py:Constant"))
    assert found.verdict == "REJECT"
    assert "has the same values under every seed" in found.message
    assert "1 features: 0 exact, 0 refused" in markdown([found], "about")


def test_messages_are_cut_to_a_line():
    assert one_line(f"a {ROOT}/tests/zoo is (at {ROOT}/x.py:3, in f)\nmore") == "a tests/zoo is"
    cut = one_line("x" * 1000)
    assert (len(cut), cut[-1]) == (LONGEST, "…")


def test_a_block_is_replaced_and_a_page_without_one_refused(tmp_path):
    path = Path(tmp_path / "page.md")
    path.write_text("before\n<!-- one: begin -->\nold\n<!-- one: end -->\nafter\n")
    page.write(path, "one", "new")
    assert path.read_text() == "before\n<!-- one: begin -->\nnew\n<!-- one: end -->\nafter\n"
    with pytest.raises(SystemExit, match="no block"):
        page.write(path, "two", "new")
