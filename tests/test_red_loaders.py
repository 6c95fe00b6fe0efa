"""What a red team found in loaders, the program's own randomness and frozen bases."""

import re
from pathlib import Path

import numpy as np
import pytest
import torch

from pol.attacks.forger import Forger
from pol.errors import IntegrityError
from pol.proof.report import Verdict
from pol.replay import randomness
from pol.replay.kept import Kept
from test_loaders import HONEST, LOOSE
from zoo.tools import KEY, check, train

RED = Path(__file__).parent / "zoo" / "zoo_red.py"


@pytest.fixture
def generators():
    before = randomness.save()
    yield
    randomness.load(before)


# -- generators of a forged checkpoint ----------------------------------------------------------------------------


def torch_positions(left, following):
    state = torch.Generator().manual_seed(0).get_state().numpy().copy()
    state[8:12] = np.frombuffer(np.int32(left).tobytes(), np.uint8)
    state[16:24] = np.frombuffer(np.uint64(following).tobytes(), np.uint8)
    return torch.from_numpy(state)


@pytest.mark.parametrize(("left", "following"), [(624, 624), (300, 624), (624, 2), (2, 0)])
@pytest.mark.parametrize("key", ["global.torch", "own"])
def test_torch_never_reads_beyond_its_words(key, left, following, generators):
    """Torch looks at each of the two positions alone: 624 left from word 624 on lie outside of the generator."""
    kept = Kept({"own": torch.Generator()})
    with pytest.raises(IntegrityError, match="positions"):
        kept.load({**kept.now(), key: torch_positions(left, following)})


@pytest.mark.parametrize("drawn", [0, 1, 2, 623, 624, 625, 1248])
def test_every_position_of_an_honest_generator_is_taken(drawn, generators):
    kept = Kept({"own": torch.Generator()})
    for _ in range(drawn):
        torch.randint(9, (1,), generator=kept.attached["own"])
    kept.load(kept.now())


def zeros(own):
    """A state of words that are all zero."""
    if own == "global.torch":
        state = torch.get_rng_state().numpy().copy()
        state[24 : 24 + 8 * 624] = 0
        return torch.from_numpy(state)
    first = {"global.python": 4 * 624, "global.numpy": 4 * 624}[own]
    state = Kept({}).now()[own].clone()
    state[:first] = 0
    return state


@pytest.mark.parametrize("key", ["global.python", "global.numpy", "global.torch"])
def test_a_generator_that_gives_zeros_for_ever_is_refused(key, generators):
    """Drawing a normal by rejection never ends with it, and a verifier has no clock that would end it."""
    kept = Kept({})
    with pytest.raises(IntegrityError, match="words of zeros"):
        kept.load({**kept.now(), key: zeros(key)})


MALFORMED = [
    ("MT19937", r'"key":\[[^]]*\]', '"key":[1]'),
    ("MT19937", r'"key":\[[^]]*\]', f'"key":{[0] * 624}'.replace(" ", "")),
    ("MT19937", r'"state":\{.*\}', '"state":[1]}}'),
    ("Philox", r'"buffer":\[[^]]*\]', '"buffer":[]'),
    ("Philox", r'"counter":\[[^]]*\]', '"counter":[1,2]'),
    ("SFC64", r'"state":\[[^]]*\]', '"state":[1]'),
    ("PCG64", r'"inc":\{[^}]*\}', '"inc":2'),
    ("PCG64", r'"state":\{"map":\{"inc".*?\}\}\}', '"state":[1]'),
]


@pytest.mark.parametrize(("algorithm", "pattern", "instead"), MALFORMED)
def test_a_malformed_numpy_generator_is_an_integrity_error(algorithm, pattern, instead, generators):
    kept = Kept({"own": np.random.Generator(getattr(np.random, algorithm)(5))})
    states = kept.now()
    text, count = re.subn(pattern, instead, bytes(states["own"].tolist()).decode())
    assert count
    states["own"] = torch.frombuffer(bytearray(text.encode()), dtype=torch.uint8)
    with pytest.raises(IntegrityError, match="generators"):
        kept.load(states)


def test_a_proof_with_such_a_generator_is_rejected(tmp_path):
    train(HONEST["Own"], tmp_path / "p")
    forger = Forger(tmp_path / "p")
    forger.states[3].tensors["generator/global.torch"] = torch_positions(624, 624)
    forger.seal(tmp_path / "forged", KEY)
    report = check(tmp_path / "forged", HONEST["Own"], policy=LOOSE)
    assert report.verdict is Verdict.REJECT
    assert any("positions 624 and 624" in interval.detail for interval in report.intervals)
