"""Canonical JSON (RFC 8785) and the one strict decoder for everything that is signed or hashed.

Decoding checks types without coercion, refuses unknown keys, and then encodes again: bytes that are not what
this module would have written (duplicate keys, spaces, other number forms) do not parse. Floats and integers
beyond 2^53 travel as tagged strings, because JSON readers round them.
"""

from __future__ import annotations

import math
import re
from typing import Any, TypeVar

import msgspec
import rfc8785

from pol.errors import FormatError

T = TypeVar("T")

MAX_DEPTH = 64
"""Deepest nesting that is read: what is signed here has a dozen levels, and each level costs stack where it is used."""

MAX_SAFE_INTEGER = 2**53 - 1
"""Largest integer that every JSON reader keeps exact (RFC 8785 section 3.2.2.3, RFC 7493)."""

_TOO_LARGE = 10**79
_INTEGER = re.compile(r"^-?[0-9]{1,79}\Z")
"""79 digits: room for 256-bit integers, and converted in no time."""


def encode(value: Any) -> bytes:
    """Canonical JSON bytes of a msgspec struct or plain value."""
    return rfc8785.dumps(msgspec.to_builtins(value, str_keys=True))


def decode(data: bytes, type_: type[T], *, what: str, limit: int) -> T:
    """Parse canonical JSON of at most ``limit`` bytes as ``type_``.

    Raises:
        FormatError: names ``what`` and the field when the bytes are too many, malformed, of another shape, or
            not canonical.
    """
    if len(data) > limit:
        raise FormatError(f"{what}: {len(data)} bytes, more than the limit of {limit}")
    try:
        value = msgspec.json.decode(data, type=type_, strict=True)
        plain = msgspec.to_builtins(value, str_keys=True)
        if _depth(plain) > MAX_DEPTH:
            raise FormatError(f"{what}: nested more than {MAX_DEPTH} deep")
        again = rfc8785.dumps(plain)
    except RecursionError:
        raise FormatError(f"{what}: nested too deeply") from None
    except (msgspec.MsgspecError, rfc8785.CanonicalizationError, UnicodeError, ValueError) as error:
        raise FormatError(f"{what}: {error}") from None
    if again != data:
        raise FormatError(
            f"{what}: not canonical JSON (RFC 8785): duplicate keys, spaces, key order or number form "
            f"differ from the canonical encoding near byte {_first_difference(again, data)}"
        )
    return value


def _depth(value: Any) -> int:
    """Deepest nesting of a plain value, found without recursion."""
    depth, level = 0, [value]
    while containers := [inner for inner in level if isinstance(inner, list | dict)]:
        depth += 1
        level = [i for outer in containers for i in (outer.values() if isinstance(outer, dict) else outer)]
    return depth


def _first_difference(a: bytes, b: bytes) -> int:
    return next((i for i, (x, y) in enumerate(zip(a, b, strict=False)) if x != y), min(len(a), len(b)))


def tag(value: Any, where: str = "value") -> Any:
    """A configuration value as plain JSON in which floats, large integers and mappings are tagged.

    ``0.1`` becomes ``{"float": "0.1"}``, ``2**60`` becomes ``{"int": "..."}``, a mapping ``{"map": {...}}``;
    tuples become lists.

    Raises:
        FormatError: for a value of another type, with its place.
    """
    if value is None or isinstance(value, bool | str):
        return value
    if isinstance(value, int):
        if abs(value) >= _TOO_LARGE:
            raise FormatError(f"{where} is an integer of more than 79 digits")
        return value if abs(value) <= MAX_SAFE_INTEGER else {"int": str(value)}
    if isinstance(value, float):
        return {"float": float.__repr__(value)}  # numpy's float64 is a float with a repr of its own
    if isinstance(value, list | tuple):
        return [tag(item, f"{where}[{i}]") for i, item in enumerate(value)]
    if isinstance(value, dict) and all(isinstance(key, str) for key in value):
        return {"map": {key: tag(item, f"{where}.{key}") for key, item in value.items()}}
    raise FormatError(
        f"{where} is a {type(value).__name__}: use None, bool, int, float, str, or lists and string-keyed "
        "mappings of these"
    )


def untag(value: Any, where: str = "value") -> Any:
    """The inverse of ``tag``.

    Raises:
        FormatError: for anything that ``tag`` does not write.
    """
    if value is None or isinstance(value, bool | str | int):
        return value
    if isinstance(value, list):
        return [untag(item, f"{where}[{i}]") for i, item in enumerate(value)]
    if isinstance(value, dict) and len(value) == 1:
        ((kind, inner),) = value.items()
        if kind == "float" and isinstance(inner, str):
            return parse_float(inner, where)
        if kind == "int" and isinstance(inner, str):
            return _parse_int(inner, where)
        if kind == "map" and isinstance(inner, dict):
            return {key: untag(item, f"{where}.{key}") for key, item in inner.items()}
    raise FormatError(f"{where}: not a tagged value: {str(value)[:80]}")


def parse_float(text: str, where: str, *, finite: bool = False) -> float:
    """A float from its shortest decimal form (Python's ``repr``), and from no other.

    Raises:
        FormatError: for another form, or, with ``finite``, for nan and infinities.
    """
    try:
        value = float(text) if len(text) <= 32 else math.nan  # repr of a float64 is at most 24 characters
    except ValueError:
        value = math.nan
    if repr(value) != text or (finite and not math.isfinite(value)):
        raise FormatError(f"{where}: not a {'finite ' if finite else ''}float in its shortest form: {text[:40]!r}")
    return value


def _parse_int(text: str, where: str) -> int:
    if not _INTEGER.match(text):
        raise FormatError(f"{where}: not an integer: {text[:40]!r}")
    value = int(text)
    if str(value) != text or abs(value) <= MAX_SAFE_INTEGER:
        raise FormatError(f"{where}: an integer in another form: {text[:40]!r}")
    return value
