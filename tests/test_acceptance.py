"""docs/acceptance.md names tests that exist and attacks that exist, for every row of the list."""

import ast
import re
from pathlib import Path

import pytest

from pol.attacks.registry import REGISTRY

TESTS = Path(__file__).parent
PAGE = TESTS.parent / "docs" / "acceptance.md"
ROWS = {
    int(cells[1]): [cell.strip() for cell in cells[2:5]]
    for line in PAGE.read_text().splitlines()
    if re.match(r"\| \d+ \|", line) and (cells := line.split("|"))
}
MUST_HOLD = range(14, 35)


def named(row):
    return re.findall(r"`(test_\w+\.py)::(test_\w+)`", ROWS[row][1])


def test_every_row_is_there():
    assert sorted(ROWS) == list(range(1, 56))


@pytest.mark.parametrize("row", sorted(ROWS))
def test_named_tests_exist(row):
    for file, name in named(row):
        defined = {node.name for node in ast.walk(ast.parse((TESTS / file).read_text())) if hasattr(node, "name")}
        assert name in defined, f"{file}::{name}"
    assert named(row) or "later" in ROWS[row][2], "neither a test nor said to be open"


@pytest.mark.parametrize("row", MUST_HOLD)
def test_the_verdict_rows_have_tests(row):
    assert named(row)


@pytest.mark.parametrize("row", sorted(ROWS))
def test_named_examples_exist(row):
    vectors = {path.name for path in (TESTS / "vectors").iterdir()}
    for inside in re.findall(r"` \(([^)]*)\)", ROWS[row][1]):
        for name in re.findall(r"`([a-z-]+)`", inside):
            assert name in REGISTRY or name in vectors, name
