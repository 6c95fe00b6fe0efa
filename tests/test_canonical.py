"""Canonical JSON: one value has one encoding, and nothing else parses."""

import json
import math
from typing import Annotated

import msgspec
import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from pol import canonical
from pol.errors import FormatError

SAFE = canonical.MAX_SAFE_INTEGER
TEXT = st.text(st.characters(exclude_categories=["Cs"]))
JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-SAFE, SAFE) | TEXT | st.floats(-1e15, 1e15),
    lambda inner: st.lists(inner) | st.dictionaries(TEXT, inner),
    max_leaves=20,
)
PLAIN = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**200), 2**200) | TEXT | st.floats(allow_nan=False),
    lambda inner: st.lists(inner) | st.dictionaries(TEXT, inner),
    max_leaves=20,
)


class Thing(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    count: Annotated[int, msgspec.Meta(ge=0)]
    names: list[str]
    maybe: str | None = None


def decode(data, type_=object, limit=10**6):
    return canonical.decode(data, type_, what="thing", limit=limit)


def test_rfc_8785_example():
    value = {
        "numbers": [333333333.33333329, 1e30, 4.50, 2e-3, 0.000000000000000000000000001],
        "string": "\u20ac$\u000f\u000aA'\u0042\u0022\u005c\\\"/",
        "literals": [None, True, False],
    }
    expected = (
        '{"literals":[null,true,false],"numbers":[333333333.3333333,1e+30,4.5,0.002,1e-27],'
        '"string":"€$\\u000f\\nA\'B\\"\\\\\\\\\\"/"}'
    )
    assert canonical.encode(value) == expected.encode()


def test_keys_are_sorted_by_utf_16_units():
    """RFC 8785, section 3.2.3."""
    keys = ["€", "\r", "\ufb33", "1", "😀", "\x80", "ö"]
    expected = ["\r", "1", "\x80", "ö", "€", "😀", "\ufb33"]
    assert list(json.loads(canonical.encode(dict.fromkeys(keys, 0)))) == expected


@given(JSON)
def test_values_come_back(value):
    data = canonical.encode(value)
    assert decode(data) == value
    assert canonical.encode(decode(data)) == data


@given(st.binary(max_size=40) | JSON.map(lambda value: json.dumps(value).encode()))
@example(b'{"a":1,"a":1}')
@example(b"1.0")
@example(b"-0")
@example(b"1e2")
@example(b"9007199254740993")
@example(b'"\\u0041"')
@example(b'"\\/"')
@example(b'"\\ud800"')
@example(b'"\xff"')
@example(b" 1")
@example(b"1 ")
@example(b"")
@example(b"NaN")
@example(b"Infinity")
@example(b"\xef\xbb\xbf1")
def test_what_parses_is_canonical(data):
    """Whatever decodes is, byte for byte, what would have been written; the rest is one kind of error."""
    try:
        value = decode(data)
    except FormatError:
        return
    assert canonical.encode(value) == data


@given(JSON, st.data())
def test_a_changed_byte_is_another_value_or_none(value, data):
    encoded = bytearray(canonical.encode(value))
    position = data.draw(st.integers(0, len(encoded) - 1))
    encoded[position] ^= data.draw(st.integers(1, 255))
    try:
        found = decode(bytes(encoded))
    except FormatError:
        return
    assert canonical.encode(found) == bytes(encoded) != canonical.encode(value)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b'{"count":1,"count":1,"maybe":null,"names":[]}', "duplicate keys"),
        (b'{"maybe":null,"count":1,"names":[]}', "key order"),
        (b'{"count":1, "maybe":null,"names":[]}', "near byte 11"),
        (b'{"count":1,"names":[]}', "not canonical"),  # a default that is not written
        (b'{"count":1,"maybe":null,"more":2,"names":[]}', "unknown field `more`"),
        (b'{"count":1.0,"maybe":null,"names":[]}', "Expected `int`.*count|not canonical"),
        (b'{"count":"1","maybe":null,"names":[]}', r"Expected `int`, got `str` - at `\$\.count`"),
        (b'{"count":true,"maybe":null,"names":[]}', r"Expected `int`, got `bool` - at `\$\.count`"),
        (b'{"count":-1,"maybe":null,"names":[]}', r">= 0 - at `\$\.count`"),
        (b'{"count":9007199254740992,"maybe":null,"names":[]}', ""),
        (b'{"count":1,"maybe":null,"names":[1]}', r"Expected `str`, got `int` - at `\$\.names\[0\]`"),
        (b'{"count":1,"maybe":null}', "missing required field `names`"),
        (b"[]", "Expected `object`, got `array`"),
        (b"null", "Expected `object`, got `null`"),
        (b'{"count":1,"maybe":null,"names":[]', "truncated"),
        (b'{"count":1,"maybe":null,"names":[]}x', "trailing"),
        (b'{"count":1,"maybe":"\\ud800","names":[]}', "surrogate"),
        (b'{"count":1,"maybe":"\xff","names":[]}', "utf-8"),
        (b"", "truncated"),
    ],
)
def test_what_does_not_parse_is_named(data, message):
    with pytest.raises(FormatError, match=f"(?i)^thing: .*({message})"):
        decode(data, Thing)


def test_what_parses():
    assert decode(b'{"count":1,"maybe":null,"names":["a"]}', Thing) == Thing(1, ["a"])


@pytest.mark.parametrize("opening", [b"[", b'{"a":'])
def test_deep_nesting_is_an_error(opening):
    with pytest.raises(FormatError, match=r"^thing: "):
        decode(opening * 100_000)
    closing = {b"[": b"]", b'{"a":': b"}"}[opening]
    with pytest.raises(FormatError, match=r"^thing: "):
        decode(opening * 5000 + b"1" + closing * 5000)


def test_size_is_limited():
    assert decode(b"[1,2]", limit=5) == [1, 2]
    with pytest.raises(FormatError, match="thing: 5 bytes, more than the limit of 4"):
        decode(b"[1,2]", limit=4)


@pytest.mark.parametrize("number", [2**53, -(2**53), 2**64, 10**400])
def test_integers_that_readers_round_do_not_parse(number):
    with pytest.raises(FormatError, match=r"^thing: "):
        decode(str(number).encode())


# --- tagged values


def same(a, b):
    return (math.isnan(a) and math.isnan(b)) or (a == b and math.copysign(1, a) == math.copysign(1, b))


@given(PLAIN)
def test_tagged_values_come_back_through_json(value):
    tagged = canonical.tag(value)
    again = decode(canonical.encode(tagged))
    assert again == tagged
    assert canonical.untag(again) == value
    assert canonical.tag(canonical.untag(again)) == again


@given(st.floats())
def test_floats_come_back_bit_for_bit(value):
    (back,) = canonical.untag(decode(canonical.encode(canonical.tag([value]))))
    assert same(back, value)
    assert same(canonical.untag(canonical.tag(np.float64(value))), value)


def test_tuples_become_lists():
    assert canonical.untag(canonical.tag({"betas": (0.9, 1)})) == {"betas": [0.9, 1]}


@pytest.mark.parametrize(
    ("value", "tagged"),
    [
        (0.1, {"float": "0.1"}), (-0.0, {"float": "-0.0"}), (math.inf, {"float": "inf"}), (1e22, {"float": "1e+22"}),
        (SAFE, SAFE), (SAFE + 1, {"int": str(SAFE + 1)}), (True, True), ({}, {"map": {}}),
        ({"float": 1}, {"map": {"float": 1}}),
    ],
)  # fmt: skip
def test_tags(value, tagged):
    assert canonical.tag(value) == tagged


@pytest.mark.parametrize(
    "value", [{1, 2}, b"bytes", object(), {1: 2}, 1j, np.int64(1), np.float32(1), [[(None, {3: 4})]]]
)
def test_values_of_other_types_are_refused_with_their_place(value):
    with pytest.raises(FormatError, match=r"^lr.* is a \w+: use None, bool"):
        canonical.tag(value, "lr")


def test_the_largest_integers():
    for value in (10**79 - 1, 1 - 10**79):
        assert canonical.untag(canonical.tag(value)) == value
    with pytest.raises(FormatError, match="seed is an integer of more than 79 digits"):
        canonical.tag(10**79, "seed")


def test_the_place_of_a_refused_value_is_named():
    with pytest.raises(FormatError, match=r"^betas\.a\[1\] is a complex"):
        canonical.tag({"a": [1, 1j]}, "betas")


@pytest.mark.parametrize(
    "value",
    [
        1.5, {}, {"float": 1}, {"float": "1"}, {"float": "0.10"}, {"float": " 0.1"}, {"float": "1e22"},
        {"float": "1_0.0"}, {"float": "0" * 40}, {"int": 5}, {"int": "5"}, {"int": str(SAFE)},
        {"int": "0" + str(SAFE + 1)}, {"int": "1" * 80}, {"int": str(SAFE + 1) + "\n"},
        {"int": "+" + str(SAFE + 1)}, {"int": "--9007199254740993"}, {"int": "٣" * 20}, {"int": ""}, {"int": "-"},
        {"map": []}, {"list": []}, {"float": "0.1", "int": "1"}, {"map": {"a": 1.5}}, [{"x": 1}],
    ],
)  # fmt: skip
def test_what_tag_does_not_write_is_refused(value):
    with pytest.raises(FormatError, match=r"^here"):
        canonical.untag(value, "here")


@pytest.mark.parametrize("text", ["nan", "inf", "-inf"])
def test_finite_means_finite(text):
    assert not math.isfinite(canonical.parse_float(text, "loss"))
    with pytest.raises(FormatError, match="loss: not a finite float"):
        canonical.parse_float(text, "loss", finite=True)
