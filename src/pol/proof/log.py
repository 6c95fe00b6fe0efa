"""The log: an append-only list of records, one line of canonical JSON each, and its Merkle tree."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TypeVar

import msgspec

from pol import canonical
from pol.digest import frame
from pol.errors import FormatError
from pol.interval import Interval, Origin
from pol.merkle import Root, leaf_hash, tree
from pol.proof.genesis import Spec
from pol.statetree import StateRoot

MAX_LINE = 16 * 2**20
"""Longest record: 16 MiB, a hundred thousand steps of an interval with a new learning rate at each."""

R = TypeVar("R", Origin, Interval)


class Log(msgspec.Struct, frozen=True):
    """A parsed log."""

    origin: Origin
    intervals: list[Interval]
    root: Root


def counts_after(log: Log, spec: Spec, step: int) -> dict[str, int]:
    """Steps of each counted schedule after ``step`` steps, a boundary."""
    if step == 0:
        return {part.name: 0 for part in spec.declaration.parts if part.counted}
    return log.intervals[-(-step // spec.every) - 1].schedules


def root_after(log: Log, spec: Spec, step: int) -> StateRoot:
    """The recorded roots of the state after ``step`` steps, a boundary."""
    return log.intervals[-(-step // spec.every) - 1].root if step else log.origin.root


def encode_record(record: Origin | Interval) -> bytes:
    """A record as a line, with its newline."""
    return canonical.encode(record) + b"\n"


def decode_record(line: bytes, type_: type[R], number: int) -> R:
    """Parse line ``number`` (from 1) of a log.

    Raises:
        FormatError: it is not such a record, or not canonical.
    """
    record: R = canonical.decode(line, type_, what=f"log.jsonl line {number}", limit=MAX_LINE)
    if isinstance(record, Interval):
        _check_floats(record, f"log.jsonl line {number}")
    return record


def _check_floats(interval: Interval, where: str) -> None:
    texts = [value for rates in interval.learning_rates for value in rates.values]
    if interval.loss is not None:
        texts.append(interval.loss)
    for text in texts:
        canonical.parse_float(text, where, finite=True)


def record_leaf(line: bytes) -> bytes:
    """Leaf hash of a line (without its newline)."""
    return leaf_hash(frame("pol/v1/log", line))


def log_root(lines: Iterable[bytes]) -> Root:
    """Root of a log, from its lines without newlines."""
    return tree([record_leaf(line) for line in lines])


def parse_log(data: bytes) -> Log:
    """Parse a whole log.

    Raises:
        FormatError: names the line and the field.
    """
    if not data.endswith(b"\n"):
        raise FormatError("log.jsonl: empty, or the last line has no end")
    lines = data[:-1].split(b"\n")
    origin = decode_record(lines[0], Origin, 1)
    intervals = [decode_record(line, Interval, number) for number, line in enumerate(lines[1:], start=2)]
    return Log(origin=origin, intervals=intervals, root=log_root(lines))
