"""The Merkle tree and BLAKE3 against public vectors, and the tree against the RFC's own recursion."""

import base64
import hashlib
import json
from pathlib import Path

import pytest
from blake3 import blake3
from hypothesis import given
from hypothesis import strategies as st

from pol import merkle

DATA = Path(__file__).parent / "data"
INCLUSION = json.loads((DATA / "rfc9162-merkle.json").read_text())["inclusion"]
BLAKE3 = json.loads((DATA / "blake3.json").read_text())

LEAVES = st.lists(st.binary(max_size=8), min_size=1, max_size=40)


def naive_root(leaves):
    """RFC 9162 section 2.1.1, word for word."""
    if not leaves:
        return hashlib.sha256(b"").digest()
    if len(leaves) == 1:
        return hashlib.sha256(b"\x00" + leaves[0]).digest()
    k = naive_split(len(leaves))
    return hashlib.sha256(b"\x01" + naive_root(leaves[:k]) + naive_root(leaves[k:])).digest()


def naive_path(leaves, index):
    """RFC 9162 section 2.1.3.1, word for word."""
    if len(leaves) == 1:
        return []
    k = naive_split(len(leaves))
    if index < k:
        return [*naive_path(leaves[:k], index), naive_root(leaves[k:])]
    return [*naive_path(leaves[k:], index - k), naive_root(leaves[:k])]


def naive_split(size):
    k = 1
    while 2 * k < size:
        k *= 2
    return k


def hashes(leaves):
    return [merkle.leaf_hash(leaf) for leaf in leaves]


def numbered(size):
    return hashes([b"leaf %d" % i for i in range(size)])


@pytest.mark.parametrize("name", sorted(INCLUSION))
def test_inclusion_vector(name):
    vector = INCLUSION[name]
    accepted = merkle.verify_inclusion(
        base64.b64decode(vector["leafHash"]),
        vector["leafIdx"],
        vector["treeSize"],
        [base64.b64decode(sibling) for sibling in vector["proof"] or []],
        base64.b64decode(vector["root"]),
    )
    assert accepted is not vector["wantErr"]


def test_inclusion_vectors_are_all_there():
    wanted = [vector["wantErr"] for vector in INCLUSION.values()]
    assert (wanted.count(True), wanted.count(False)) == (92, 6)


# The consistency vectors of the same project hold a 12-byte root that their verifier takes, since it only
# compares (sizes are equal to one, the proof is empty). Ours refuses a root that is not 32 bytes long.
@pytest.mark.parametrize("wrong", [b"don't care 2", b"", bytes(31), bytes(33)], ids=len)
def test_root_of_another_length_is_refused(wrong):
    assert not merkle.verify_inclusion(wrong, 0, 1, [], wrong)
    assert not merkle.verify_inclusion(merkle.leaf_hash(b""), 0, 1, [], wrong)


def test_sibling_of_another_length_is_refused():
    leaf = merkle.leaf_hash(b"leaf")
    sibling = bytes(31)
    forged = hashlib.sha256(b"\x01" + leaf + sibling).digest()
    assert not merkle.verify_inclusion(leaf, 0, 2, [sibling], forged)


def test_root_of_no_leaves():
    assert merkle.root([]) == hashlib.sha256(b"").digest()


@given(LEAVES)
def test_root_and_paths_equal_the_naive_ones(leaves):
    leaf_hashes = hashes(leaves)
    root = merkle.root(leaf_hashes)
    assert root == naive_root(leaves)
    for index, leaf in enumerate(leaf_hashes):
        path = merkle.inclusion_path(leaf_hashes, index)
        assert path == naive_path(leaves, index)
        assert merkle.verify_inclusion(leaf, index, len(leaves), path, root)


@pytest.mark.parametrize("size", range(1, 18))
def test_another_index_is_refused(size):
    leaf_hashes = numbered(size)
    root = merkle.root(leaf_hashes)
    for index in range(size):
        path = merkle.inclusion_path(leaf_hashes, index)
        taken = [i for i in range(-1, 2 * size) if merkle.verify_inclusion(leaf_hashes[index], i, size, path, root)]
        assert taken == [index]


@given(LEAVES, st.data())
def test_any_changed_bit_is_refused(leaves, data):
    leaf_hashes = hashes(leaves)
    index = data.draw(st.integers(0, len(leaves) - 1))
    root = merkle.root(leaf_hashes)
    parts = [leaf_hashes[index], root, *merkle.inclusion_path(leaf_hashes, index)]
    which = data.draw(st.integers(0, len(parts) - 1))
    bit = data.draw(st.integers(0, 255))
    parts[which] = (int.from_bytes(parts[which], "big") ^ (1 << bit)).to_bytes(32, "big")
    leaf, root, *path = parts
    assert not merkle.verify_inclusion(leaf, index, len(leaves), path, root)


@pytest.mark.parametrize("size", [1, 2, 3, 8, 13])
def test_shorter_and_longer_paths_are_refused(size):
    leaf_hashes = numbered(size)
    root = merkle.root(leaf_hashes)
    for index, leaf in enumerate(leaf_hashes):
        path = merkle.inclusion_path(leaf_hashes, index)
        assert not merkle.verify_inclusion(leaf, index, size, [*path, bytes(32)], root)
        if path:
            assert not merkle.verify_inclusion(leaf, index, size, path[:-1], root)
            assert not merkle.verify_inclusion(leaf, index, size, path[1:], root)


@pytest.mark.parametrize(("index", "size"), [(0, 0), (-1, 4), (4, 4)])
def test_path_of_a_leaf_that_is_not_there(index, size):
    with pytest.raises(IndexError):
        merkle.inclusion_path(numbered(size), index)


@pytest.mark.parametrize("case", BLAKE3["cases"], ids=lambda case: f"{case['input_len']}-bytes")
def test_blake3_vector(case):
    data = (bytes(range(251)) * (case["input_len"] // 251 + 1))[: case["input_len"]]
    context = "BLAKE3 2019-12-27 16:29:52 test vectors context"
    hashers = {
        "hash": blake3(data),
        "keyed_hash": blake3(data, key=BLAKE3["key"].encode()),
        "derive_key": blake3(data, derive_key_context=context),
    }
    for mode, hasher in hashers.items():
        expected = bytes.fromhex(case[mode])
        assert hasher.digest(length=len(expected)) == expected  # extended output
        assert hasher.digest() == expected[:32]


def test_blake3_threads_do_not_change_the_digest():
    data = bytes(range(256)) * 16_384  # 4 MiB: enough for the threads to be used
    assert blake3(data, max_threads=blake3.AUTO).digest() == blake3(data, max_threads=1).digest()
