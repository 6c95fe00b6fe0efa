"""What a red team found in loaders, the program's own randomness and frozen bases."""

import random
import re
from pathlib import Path

import msgspec
import numpy as np
import pytest
import torch

from pol.attacks.forger import Forger
from pol.errors import IntegrityError, UsageError
from pol.proof.genesis import genesis_digest
from pol.proof.policy import EXACT
from pol.proof.report import Verdict
from pol.release import write_model
from pol.replay import randomness
from pol.replay.kept import Kept
from pol.replay.reseeding import reseeded
from test_loaders import HONEST, LOOSE, genesis_of, policy_for
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


# -- what lies beside a base --------------------------------------------------------------------------------------

UNBOUND = {
    "BesideBase": "shares its memory with a frozen base",
    "OtherStateDict": "does not tell of weight as the module has it",
}


@pytest.mark.parametrize("name", UNBOUND)
def test_what_no_root_binds_is_no_base(name, tmp_path):
    """Such a tensor was in no state and in no root, so constants of any kind could come in."""
    with pytest.raises(UsageError, match=UNBOUND[name]):
        train(f"{RED}:{name}", tmp_path / "p")


def test_a_buffer_that_the_root_leaves_out_is_in_the_state(tmp_path):
    reference = f"{RED}:UnsavedBuffer"
    train(reference, tmp_path / "p")
    entries = [entry.key for entry in genesis_of(tmp_path / "p").spec.declaration.entries]
    assert entries == ["parameter/model.1.bias", "parameter/model.1.weight", "transient/model.0.table"]
    policy = policy_for(tmp_path / "p", assurance="self-seeded")
    assert check(tmp_path / "p", reference, policy=policy).verdict is Verdict.ACCEPT
    strict = msgspec.structs.replace(policy, constants="none")
    report = check(tmp_path / "p", reference, policy=strict)
    assert (report.verdict, report.caught_by) == (Verdict.REJECT, 5)


# -- parents of bases ---------------------------------------------------------------------------------------------


def test_a_parent_that_releases_nothing_is_a_rejection(tmp_path):
    train(HONEST["Frozen"], tmp_path / "child")
    train(f"{RED}:Nameless", tmp_path / "parent")
    report = check(
        tmp_path / "child", HONEST["Frozen"], policy=LOOSE, parents=[(tmp_path / "parent", f"{RED}:Nameless")]
    )
    assert (report.verdict, report.caught_by) == (Verdict.REJECT, 5)
    assert "releases nothing" in report.reason()


def test_a_base_from_a_parent_is_no_more_than_its_parent(tmp_path):
    """Whoever demands an answer to a nonce of its own is not given a base whose seed the claimant chose."""
    nonce = "5a" * 32
    lora = RED.with_name("zoo_lora.py")
    train(f"{lora}:Parent", tmp_path / "parent")
    write_model(tmp_path / "parent", tmp_path / "base.safetensors")
    settings = {"base": str(tmp_path / "base.safetensors")}
    train(f"{lora}:Child", tmp_path / "child", settings=settings, beacon=bytes.fromhex(nonce))
    genesis = genesis_of(tmp_path / "child")
    (file,) = genesis.spec.declaration.external
    policy = msgspec.structs.replace(
        EXACT, externals=(file.digest,), assurance="verifier-seeded", beacon=nonce, genesis=genesis_digest(genesis)
    )
    report = check(
        tmp_path / "child", f"{lora}:Child", policy=policy, parents=[(tmp_path / "parent", f"{lora}:Parent")]
    )
    assert report.verdict is Verdict.INCONCLUSIVE, report.reason()
    assert "self-seeded" in report.reason()


# -- another sampler in another epoch -----------------------------------------------------------------------------


@pytest.mark.parametrize("every", [1, 4])
def test_a_first_epoch_in_order_and_then_shuffled(every, tmp_path):
    """Records of the second epoch had no indices: what was recorded could not be entered there, or was rejected."""
    reference = f"{RED}:SortedFirst"
    train(reference, tmp_path / "p", every=every)
    report = check(tmp_path / "p", reference, policy=policy_for(tmp_path / "p", order="permutation"))
    assert report.verdict is Verdict.ACCEPT, report.reason()


def test_a_sampler_after_shuffled_epochs_is_refused(tmp_path):
    """It was recorded, and then rejected."""
    with pytest.raises(UsageError, match="a sampler after epochs that were shuffled"):
        train(f"{RED}:SortedLast", tmp_path / "p")


# -- first weights that the recipe draws under its own seed -------------------------------------------------------


def test_weights_from_elsewhere_are_not_drawn_by_the_recipe(tmp_path):
    """They are the same in every build, as drawn ones are; with other seeds in the recipe they still are."""
    reference = f"{RED}:Stolen"
    train(reference, tmp_path / "p")
    assert genesis_of(tmp_path / "p").randomness.origin == "recipe"
    report = check(tmp_path / "p", reference, policy=LOOSE)
    assert (report.verdict, report.caught_by) == (Verdict.REJECT, 5)
    assert "comes from elsewhere" in report.reason()
    policy = msgspec.structs.replace(LOOSE, constants="any")
    assert check(tmp_path / "p", reference, policy=policy).verdict is Verdict.ACCEPT


def test_seeding_is_as_it_was_afterwards(generators):
    kept = [random.seed, np.random.seed, np.random.default_rng, torch.manual_seed]

    def drawn(seed):
        with reseeded(bytes([seed]) * 32):
            seeding = torch.manual_seed
            seeding(3)
            inside = torch.rand(()).item(), np.random.default_rng(3).random()
        seeding(3)
        return *inside, torch.rand(()).item()

    first, again, other = drawn(1), drawn(1), drawn(2)
    torch.manual_seed(3)
    assert first == again
    assert {first[0], other[0], torch.rand(()).item()} == {first[0], other[0], first[2]}
    assert len({*first, *other}) == 5
    assert [random.seed, np.random.seed, np.random.default_rng, torch.manual_seed] == kept
