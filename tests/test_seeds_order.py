"""Seeds and orders: known answers, and what they must not have in common."""

import hashlib
import hmac
import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pol import seeds
from pol.digest import frame
from pol.errors import FormatError
from pol.order import epoch_order, keyed_permutation, sample_list_digest

GENESIS = "sha256:" + bytes(range(32)).hex()
R = bytes(range(100, 132))
KEY = b"whats the Elvish word for friend"  # of BLAKE3's own vectors


def hkdf(salt, material, info, length=32):
    """RFC 5869, written down once more."""
    key, block, out = hmac.digest(salt, material, "sha256"), b"", b""
    for number in range(1, 256):
        if len(out) >= length:
            break
        block = hmac.digest(key, block + info + bytes([number]), "sha256")
        out += block
    return out[:length]


@pytest.mark.parametrize(
    ("key", "info", "expected"),
    [  # RFC 5869, test cases 1 and 3: pseudorandom key, info, the first 32 bytes of the output
        (
            "077709362c2e32df0ddc3f0dc47bba6390b6c73bb50f9c3122ec844ad7c2b3e5", "f0f1f2f3f4f5f6f7f8f9",
            "3cb25f25faacd57a90434f64d0362f2a2d2d0a90cf1a5a4c5db02d56ecc4c5bf",
        ),
        (
            "19ef24a32c717b167f33a91d6f648bdf96596776afdb6377ac434c1c293ccb04", "",
            "8da4e775a563c18f715f802a063c5a31b8a11f5c5ee1879ec3454e5f3c738d2d",
        ),
    ],
)  # fmt: skip
def test_expand_is_hkdf_expand(key, info, expected):
    assert seeds.expand(bytes.fromhex(key), "", bytes.fromhex(info)).hex() == expected


@pytest.mark.parametrize("beacon", [seeds.NO_BEACON, bytes(range(32))])
def test_the_seed_is_what_the_design_says(beacon):
    material = bytes(range(32)) + hashlib.sha256(beacon).digest() + R
    assert seeds.derive_seed(GENESIS, beacon, R) == hkdf(b"pol/v1/seed", material, b"")


def test_seeds_have_known_answers():
    """Part of format v1: these values may never change."""
    seed = seeds.derive_seed(GENESIS, seeds.NO_BEACON, R)
    found = {
        "seed": seed.hex(),
        "control": seeds.CONTROL_SEED.hex(),
        "commitment": seeds.commit(R),
        "batch key": seeds.batch_key(R).hex(),
        "salt key": seeds.salt_key(R).hex(),
        "stream": seeds.Stream(seed, "pol/v1/stream").draw(16, "step", 3).hex(),
        "order": epoch_order(seed, 1, 10).tolist(),
        "samples": sample_list_digest([(3, bytes(32)), (2**40, bytes(range(32)))]),
    }
    assert found == KNOWN


KNOWN = {
    "seed": "16d3541b43c05fbad8fd362d3dd5380f7f08da08dc3f39cdb2a852ab1191fcdb",
    "control": "c9c11c7fd305c37c76fb2cf9aa561ee231d7bed87756883769f36335edfc284c",
    "commitment": "sha256:68c4424addde696dd7892aad7d1479b85a267acd7ddac4143a9de7f70792df31",
    "batch key": "c6470278ddac6133dcbbcb4758aa7874add34f6d33b4de3236244471c392b26c",
    "salt key": "0aaeda61d12eab5f018f0c5b7c2cb94a60969e8649740f186d7ada1bd7a95928",
    "stream": "2331853307e37424aef25b4a4438b29b",
    "order": [4, 6, 8, 1, 2, 7, 9, 5, 0, 3],
    "samples": "sha256:3976b9e24f6c7ea382de43b98bd54d8d2d8aaca745da8f26f4645a894177b306",
}


def test_every_input_matters():
    other = bytes(32)
    found = {
        seeds.derive_seed(GENESIS, seeds.NO_BEACON, R),
        seeds.derive_seed(GENESIS.replace("0001", "0101"), seeds.NO_BEACON, R),
        seeds.derive_seed(GENESIS, bytes(range(32)), R),
        seeds.derive_seed(GENESIS, seeds.NO_BEACON, other),
        seeds.batch_key(R),
        seeds.salt_key(R),
        seeds.CONTROL_SEED,
    }
    assert len(found) == 7
    with pytest.raises(FormatError):
        seeds.derive_seed("no digest", seeds.NO_BEACON, R)


def test_a_stream_is_addressed_by_name_and_numbers():
    stream = seeds.Stream(bytes(32), "a")
    addresses = [("x",), ("y",), ("x", 0), ("x", 1), ("x", 0, 0), ("x", 256), ("x", 2**63)]
    drawn = [stream.draw(32, *address) for address in addresses]
    drawn += [seeds.Stream(bytes(32), "b").draw(32, "x"), seeds.Stream(b"\1" * 32, "a").draw(32, "x")]
    assert len(set(drawn)) == len(drawn)
    assert stream.draw(64, "x")[:32] == drawn[0]


# --- orders


def test_the_permutation_of_blake3_vectors():
    """Official keyed output of the empty input: 131 bytes, so sixteen words."""
    vectors = json.loads((Path(__file__).parent / "data/blake3.json").read_text())
    assert vectors["key"].encode() == KEY
    (case,) = [case for case in vectors["cases"] if case["input_len"] == 0]
    data = bytes.fromhex(case["keyed_hash"])
    words = [int.from_bytes(data[8 * i : 8 * i + 8], "little") for i in range(16)]
    assert keyed_permutation(KEY, 16).tolist() == sorted(range(16), key=lambda index: words[index])


def test_the_order_is_what_the_design_says():
    from blake3 import blake3

    seed, epoch, size = R, 5, 100
    key = hmac.digest(seed, b"pol/v1/order" + epoch.to_bytes(8, "big") + b"\1", "sha256")
    data = blake3(b"", key=key).digest(length=8 * size)
    words = [int.from_bytes(data[8 * i : 8 * i + 8], "little") for i in range(size)]
    assert epoch_order(seed, epoch, size).tolist() == [
        index for _, index in sorted(zip(words, range(size), strict=True))
    ]


@given(seed=st.binary(min_size=32, max_size=32), epoch=st.integers(0, 2**63), size=st.integers(0, 300))
@settings(max_examples=100, deadline=None)
def test_an_order_is_a_permutation(seed, epoch, size):
    order = epoch_order(seed, epoch, size)
    assert sorted(order.tolist()) == list(range(size))
    assert order.dtype == np.int64
    assert np.array_equal(order, epoch_order(seed, epoch, size))


def test_equal_words_stay_in_the_order_of_their_index(monkeypatch):
    class Same:
        def __init__(self, data, key):
            pass

        def digest(self, length):
            return b"".join((i * i % 3).to_bytes(8, "little") for i in range(length // 8))

    monkeypatch.setattr("pol.order.blake3", Same)
    assert keyed_permutation(KEY, 5000).tolist() == sorted(range(5000), key=lambda i: (i * i % 3, i))


def test_orders_of_seeds_and_epochs_differ():
    orders = {tuple(epoch_order(bytes([seed]) * 32, epoch, 30).tolist()) for seed in range(4) for epoch in range(4)}
    assert len(orders) == 16


def test_orders_are_uniform():
    """Every index is about as often at every place: 2000 orders of 6, 333 expected, six standard deviations."""
    orders = np.array([epoch_order(R, epoch, 6) for epoch in range(2000)])
    counts = np.array([np.bincount(place, minlength=6) for place in orders.T])
    assert counts.sum() == 12000
    assert np.abs(counts - 2000 / 6).max() < 6 * np.sqrt(2000 * 1 / 6 * 5 / 6)


def test_a_sample_list_is_framed():
    leaf, other = bytes(32), bytes(range(32))
    lists = [[], [(0, leaf)], [(1, leaf)], [(0, other)], [(0, leaf), (1, other)], [(1, other), (0, leaf)]]
    assert len({sample_list_digest(pairs) for pairs in lists}) == len(lists)
    expected = hashlib.sha256(frame("pol/v1/samples") + (7).to_bytes(8, "big") + leaf).hexdigest()
    assert sample_list_digest(iter([(7, leaf)])) == "sha256:" + expected
