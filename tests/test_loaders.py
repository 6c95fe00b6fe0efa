"""Loaders of one's own, the program's own randomness, frozen bases: recorded, replayed, and forged."""

import contextlib
import multiprocessing
import random
import re
from pathlib import Path

import msgspec
import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from pol.attacks.forger import Forger
from pol.errors import IntegrityError, ReplayError, UsageError
from pol.messages import Program
from pol.profile import Profile
from pol.proof.genesis import read_genesis
from pol.proof.log import parse_log
from pol.proof.policy import EXACT
from pol.proof.report import Verdict
from pol.proof.sampling import order_needed
from pol.replay import randomness
from pol.replay import recipe as recipes_of
from pol.replay.entry import Entry
from pol.replay.kept import Kept
from pol.replay.loader import Committed
from pol.replay.parts import Attached
from pol.verifier.bases import root_of
from zoo.tools import KEY, check, recipes, train

ABSTRACT = {"Loading", "Noisy", "Buckets", "Stream", "Adapter"}
HONEST = {name: reference for name, reference in recipes("zoo_loaders.py").items() if name not in ABSTRACT}
LOOSE = msgspec.structs.replace(EXACT, assurance="observed", order="any")
OWN = [name for name in HONEST if name.startswith("Own")]


def genesis_of(proof):
    return read_genesis((proof / "genesis.json").read_bytes())


def log_of(proof):
    return parse_log((proof / "log.jsonl").read_bytes())


def policy_for(proof, **changes):
    """A policy that takes whatever order and randomness a run has, and its bases."""
    bases = tuple(base.root.digest for base in genesis_of(proof).spec.declaration.frozen)
    return msgspec.structs.replace(LOOSE, bases=bases, **changes)


@pytest.fixture(scope="module")
def proofs(tmp_path_factory):
    """Proofs of the zoo with k = 1, each recorded once; not to be changed."""
    folder, made = tmp_path_factory.mktemp("loaders"), set()

    def proof(name):
        if name not in made:
            train(HONEST[name], folder / name)
            made.add(name)
        return folder / name

    return proof


# -- honest -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", HONEST)
def test_every_step_is_entered_and_reached(name, proofs):
    report = check(proofs(name), HONEST[name], policy=policy_for(proofs(name)))
    assert report.verdict is Verdict.ACCEPT, report.reason()
    assert len(report.intervals) == genesis_of(proofs(name)).spec.steps > 1


@pytest.mark.parametrize(
    "name", ["Bucketed", "OwnGenerator", "OwnWorkers", "OwnStream", "Streaming", "OwnAccumulating"]
)
@pytest.mark.parametrize("every", [2, 5])
def test_longer_intervals_cross_epochs(name, every, tmp_path):
    train(HONEST[name], tmp_path / "p", every=every, keep=2)
    report = check(tmp_path / "p", HONEST[name], policy=policy_for(tmp_path / "p"))
    assert report.verdict is Verdict.ACCEPT, report.reason()


class Plain:
    """A run that records nothing: the loop is the program's own, and nobody else touches its loader."""

    step = 0

    def attach(self, *, frozen=None, dynamic=(), randomness="derived", **parts):
        self.parts = parts
        return Attached(**parts)

    def epochs(self, n):
        return range(n)

    def loader(self, dataloader, *, batches=None):
        return dataloader

    def commit(self, *, loss, skipped=False):
        self.step += 1

    def aside(self):
        return contextlib.nullcontext()


@pytest.mark.parametrize("name", [name for name in OWN if name not in ("OwnUnseeded", "OwnBatches")])
def test_recording_changes_nothing(name, proofs):
    """With and without the recorder the final weights are the same bits."""
    torch.set_num_threads(1)  # as the profile of the recording says
    before = randomness.save()
    run = Plain()
    try:
        recipes_of.make(recipes_of.load(HONEST[name]), {}).train(run)
    finally:
        randomness.load(before)
    last = genesis_of(proofs(name)).spec.steps
    assert run.step == last
    recorded = load_file(proofs(name) / "checkpoints" / f"{last:012d}.safetensors")
    for key, tensor in run.parts["model"].state_dict().items():
        found = recorded.get(f"parameter/model.{key}", recorded.get(f"buffer/model.{key}"))
        assert torch.equal(tensor, found), key


def test_indices_are_those_that_the_sampler_chose(proofs):
    chosen = [batch for interval in log_of(proofs("OwnWeighted")).intervals for batch in interval.indices]
    assert len(chosen) == 10
    assert len(set(chosen[0] + chosen[1] + chosen[2] + chosen[3] + chosen[4])) < 18
    sizes = sorted(len(b) for interval in log_of(proofs("Bucketed")).intervals[:5] for b in interval.indices)
    assert sizes == [2, 3, 4, 6, 7]
    for name in ("Shuffled", "Streaming"):
        assert all(interval.indices is None for interval in log_of(proofs(name)).intervals)


@pytest.mark.parametrize(
    ("name", "needed"),
    [("Shuffled", "derived"), ("Sequential", "permutation"), ("Bucketed", "permutation"), ("Weighted", "any"),
     ("Own", "permutation"), ("OwnWeighted", "any"), ("Streaming", "any"), ("Batched", "permutation")],
)  # fmt: skip
def test_the_order_that_a_policy_must_take(name, needed, proofs):
    proof = proofs(name)
    assert order_needed(genesis_of(proof), log_of(proof).intervals) == needed
    orders = ["derived", "permutation", "any"]
    for order in orders:
        report = check(proof, HONEST[name], policy=policy_for(proof, order=order))
        taken = orders.index(order) >= orders.index(needed)
        assert (report.verdict is Verdict.ACCEPT) == taken, report.reason()
        assert taken or (report.caught_by == 4 and f"--order {needed} takes it" in report.reason())


@pytest.mark.parametrize("name", ["Own", "OwnBatches", "Sequential", "Streaming"])
def test_the_default_policy_wants_the_seed_to_say_all(name, proofs):
    report = check(proofs(name), HONEST[name])
    assert (report.verdict, report.caught_by) == (Verdict.REJECT, 4)
    needed = order_needed(genesis_of(proofs(name)), log_of(proofs(name)).intervals)
    options = "--assurance observed" + ("" if needed == "derived" else f" --order {needed}")
    assert f"{options} takes it" in report.reason()


def test_the_verdict_names_what_is_weaker(proofs):
    said = {}
    for name in ("Own", "Streaming", "Frozen", "Sequential"):
        report = check(proofs(name), HONEST[name], policy=policy_for(proofs(name)))
        said[name] = " ".join(report.assurance.statements)
        assert (report.assurance.level == "observed") == (name != "Frozen")
    assert "keeps its own randomness" in said["Own"]
    assert "under a seed that stands in the recipe" in said["Own"]
    assert "a stream, of which nothing was committed" in said["Streaming"]
    assert "frozen base 'base'" in said["Frozen"]
    assert "A sampler of the recipe's own chose the order" in said["Sequential"]


def test_randomness_that_is_kept_but_not_seeded_follows_from_the_run(proofs):
    assert genesis_of(proofs("OwnUnseeded")).randomness.origin == "derived"
    assert genesis_of(proofs("Own")).randomness.origin == "recipe"


def test_a_stopped_recording_goes_on(tmp_path):
    class Stop(Exception):
        pass

    def stop(phase, done, total):
        if phase == "training" and done == 4:
            raise Stop

    for name in ("Own", "OwnStream", "Bucketed", "OwnGenerator"):
        out = tmp_path / name
        with pytest.raises(Stop):
            train(HONEST[name], out, progress=stop)
        train(HONEST[name], out, resume=True)
        report = check(out, HONEST[name], policy=policy_for(out))
        assert report.verdict is Verdict.ACCEPT, report.reason()


# -- samples that are random where they are read --------------------------------------------------------------------


class Drawing:
    def __len__(self):
        return 5

    def __getitem__(self, index):
        return index, random.random(), np.random.rand(), torch.rand(()).item()


def test_a_committed_sample_depends_on_its_index_alone():
    first, second = Committed(Drawing()), Committed(Drawing())
    before = [first[i] for i in range(5)]
    random.random(), np.random.rand(), torch.rand(3)
    state = randomness.save()
    assert [second[i] for i in reversed(range(5))] == before[::-1]
    assert len({item[1] for item in before}) == 5
    assert randomness.unchanged(state)


def test_a_dataset_that_draws_from_its_own_generator_is_refused(tmp_path):
    with pytest.raises(UsageError, match="data\\(\\) is not deterministic"):
        train(f"{Path(__file__).parent / 'zoo' / 'zoo_unloadable.py'}:OwnDataGenerator", tmp_path / "p")


# -- generators as state --------------------------------------------------------------------------------------------


def test_generators_are_put_back_where_they_were():
    before = randomness.save()
    try:
        own = torch.Generator().manual_seed(4)
        others = [getattr(np.random, name)(5) for name in ("PCG64", "PCG64DXSM", "MT19937", "Philox", "SFC64")]
        mine = [random.Random(1), np.random.RandomState(2), *map(np.random.Generator, others)]
        kept = Kept({"own": own, **{str(number): one for number, one in enumerate(mine)}})

        def draw():
            globally = random.gauss(0, 1), np.random.normal(), torch.randn(3).tolist()
            return globally, torch.randn(3, generator=own).tolist(), [one.random() for one in mine]

        draw()  # a second normal is waiting in some of them
        mine[0].gauss(0, 1), mine[1].normal(), [one.integers(9, dtype="uint32") for one in mine[2:]]
        states = kept.now()
        drawn = draw()
        kept.load(states)
        assert draw() == drawn
    finally:
        randomness.load(before)


def test_a_position_beyond_the_words_is_refused():
    """numpy takes any, and then reads memory that is not its own."""
    before = randomness.save()
    try:
        for name, field, beyond in (("Philox", "buffer_pos", 5), ("MT19937", "pos", 625)):
            kept = Kept({"own": np.random.Generator(getattr(np.random, name)(5))})
            states = kept.now()
            text = re.sub(f'"{field}":\\d+', f'"{field}":{beyond}', bytes(states["own"].tolist()).decode())
            states["own"] = torch.frombuffer(bytearray(text.encode()), dtype=torch.uint8)
            with pytest.raises(IntegrityError, match="position"):
                kept.load(states)
    finally:
        randomness.load(before)


def test_what_an_import_draws_moves_nothing(tmp_path):
    """Libraries draw when they are first imported, or do not: that must not depend on what was imported before."""
    (tmp_path / "drawing.py").write_text(
        "import random, numpy, torch, pol\nclass Drawing(pol.Recipe): pass\n"
        "random.random(), numpy.random.rand(), torch.rand(())\n"
    )
    before = randomness.save()
    try:
        program = Program(
            reference=f"{tmp_path / 'drawing.py'}:Drawing", configuration={}, seed="07" * 32, profile=Profile(threads=1)
        )
        for declared in (None, 3):
            entry = Entry(msgspec.structs.replace(program, declared_seed=declared))
            for _ in range(2):
                entry.make()
                found = randomness.save()
                entry.streams.init() if declared is None else entry.streams.declared(declared)
                assert randomness.unchanged(found)
    finally:
        randomness.load(before)


@pytest.mark.parametrize("key", ["global.python", "global.numpy", "global.torch", "own"])
@pytest.mark.parametrize("damage", [lambda t: t[:-1], lambda t: t.float(), lambda t: torch.full_like(t, 255)])
def test_a_malformed_generator_is_refused(key, damage):
    before = randomness.save()
    try:
        kept = Kept({"own": torch.Generator()})
        states = kept.now()
        states[key] = damage(states[key])
        with pytest.raises(IntegrityError, match="generators"):
            kept.load(states)
    finally:
        randomness.load(before)


# -- what cannot be taken -------------------------------------------------------------------------------------------

REFUSED = {
    "OwnDataGenerator": "data\\(\\) is not deterministic",
    "Unattached": "torch.Generator of its own that is not attached",
    "Persistent": "persistent_workers=True",
    "Iterator": "can be begun anew",
    "NoLength": "does not know how many batches",
    "WrongLength": "this loader has 6 batches",
    "ShortStream": "ended after 5 batches, 7 were declared",
    "OddSampler": "records integer indices",
    "Outside": "loader\\(\\) was called outside of",
    "OtherLoader": "another dataset size, batch size or drop_last",
    "LyingSampler": "gave 5 batches; its length says 4",
    "LyingOwnSampler": "more batches than its length says",
    "Randomness": "derived or observed",
    "HiddenSampler": "cannot be entered again|differs",
    "ChangesBase": "frozen tensor base.1.running_mean|frozen tensor base.1.num_batches_tracked",
    "ChangesBaseSecretly": "frozen base 'base' is not what it was",
    "TrainsBase": "nothing that is frozen",
    "DrawsBase": "depends on the seed",
    "WantsGradients": "requires_grad_\\(False\\)",
    "NoModule": "neither a torch.nn.Module nor a state_dict",
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_be_taken_is_refused_and_named(name, tmp_path):
    with pytest.raises((UsageError, ReplayError), match=REFUSED[name]):
        train(f"{Path(__file__).parent / 'zoo' / 'zoo_unloadable.py'}:{name}", tmp_path / "p")
    assert not (tmp_path / "p" / "attestation.json").exists()


def test_an_order_file_and_a_loader_exclude_each_other(tmp_path):
    order = np.stack([np.arange(22), np.arange(22)])
    with pytest.raises(UsageError, match="order"):
        train(HONEST["Sequential"], tmp_path / "p", order=order)


# -- forgeries ------------------------------------------------------------------------------------------------------


def forged(proof, out, change):
    """A proof of the zoo, edited by its own prover and sealed again."""
    forger = Forger(proof)
    change(forger)
    forger.seal(out, KEY)
    return out


def reindex(forger, index, batches):
    forger.replace(index, indices=batches)


def declare(forger, **changes):
    declaration = msgspec.structs.replace(forger.genesis.spec.declaration, **changes)
    spec = msgspec.structs.replace(forger.genesis.spec, declaration=declaration)
    forger.genesis = msgspec.structs.replace(forger.genesis, spec=spec)


def name(forger, **changes):
    randomness = msgspec.structs.replace(forger.genesis.randomness, **changes)
    forger.genesis = msgspec.structs.replace(forger.genesis, randomness=randomness)


def move(forger, key):
    state = forger.states[3]
    state.tensors[key] = state.tensors[key].roll(8).clone()


FORGERIES = {
    # What is edited, of which proof, the step that must catch it, and a part of its message.
    "no-indices": ("Own", lambda f: reindex(f, 2, None), 4, "indices where there are none|indices of 0"),
    "too-few-indices": ("Own", lambda f: reindex(f, 2, []), 4, "indices of 0 batches, it has 1"),
    "an-empty-batch": ("Own", lambda f: reindex(f, 2, [[]]), 4, "indices of 1 batches"),
    "an-index-of-nothing": ("Own", lambda f: reindex(f, 2, [[0, 1, 2, 22]]), 4, "an index of no sample"),
    "other-indices": ("Own", lambda f: reindex(f, 2, [[4, 3, 2, 1]]), 7, "samples that are not the committed"),
    "indices-where-none-belong": ("Shuffled", lambda f: reindex(f, 2, [[0]]), 4, "indices where there are none"),
    "moved-generator": ("Own", lambda f: move(f, "generator/global.torch"), 7, "other values for"),
    "moved-epoch-generator": ("Own", lambda f: move(f, "generator/epoch.global.torch"), 7, "other values for"),
    "another-generator": ("OwnGenerator", lambda f: move(f, "generator/shuffling"), 7, "other values for"),
    "streams-said-to-be-derived": ("Own", lambda f: name(f, streams="derived"), 4, "another randomness"),
    "order-said-to-be-derived": ("Own", lambda f: name(f, order="derived"), 4, "another randomness"),
    "own-seed-without-own-streams": ("Shuffled", lambda f: name(f, initialisation="recipe"), 4, "need streams of its"),
    "another-base": (
        "Frozen",
        lambda f: declare(f, frozen=[msgspec.structs.replace(f.genesis.spec.declaration.frozen[0], name="other")]),
        5, "declares something else",
    ),
    "no-base": ("Frozen", lambda f: declare(f, frozen=[]), 5, "declares something else"),
}  # fmt: skip


@pytest.mark.parametrize("forgery", FORGERIES)
def test_a_forgery_is_caught_where_expected(forgery, proofs, tmp_path):
    target, change, step, message = FORGERIES[forgery]
    out = forged(proofs(target), tmp_path / "forged", change)
    report = check(out, HONEST[target], policy=policy_for(proofs(target)))
    assert (report.verdict, report.caught_by) == (Verdict.REJECT, step), report.reason()
    assert re.search(message, report.reason()), report.reason()


def test_a_sample_of_the_dataset_that_was_changed_afterwards(proofs, tmp_path):
    """Batches and states are honest; the committed leaf of one sample is another one."""

    def change(forger):
        leaves = list(forger.leaves)
        leaves[7] = leaves[8]
        forger.commit_dataset(leaves)

    for target in ("OwnSequential", "AugmentingSequential"):
        out = forged(proofs(target), tmp_path / target, change)
        report = check(out, HONEST[target], policy=policy_for(proofs(target)))
        assert report.verdict is Verdict.REJECT, report.reason()


# -- bases ----------------------------------------------------------------------------------------------------------


def test_a_base_that_nobody_named_is_refused(proofs):
    report = check(proofs("Frozen"), HONEST["Frozen"], policy=LOOSE)
    assert (report.verdict, report.caught_by) == (Verdict.REJECT, 5)
    assert "--base" in report.reason()


def test_a_base_is_in_no_checkpoint_and_bound_by_its_root(proofs, tmp_path):
    (base,) = genesis_of(proofs("Frozen")).spec.declaration.frozen
    last = load_file(sorted((proofs("Frozen") / "checkpoints").iterdir())[-1])
    names = sorted(key.partition("/")[2] for key in last if key.startswith("parameter/"))
    assert names == [f"model.{layer}.{way}.weight" for layer in (0, 2) for way in ("down", "up")]
    recipe = recipes_of.make(recipes_of.load(HONEST["Frozen"]), {})
    save_file(recipe.build()["frozen"].state_dict(), tmp_path / "base.safetensors")
    assert root_of(tmp_path / "base.safetensors") == base.root.digest


def test_a_model_that_a_parent_released_is_a_base(tmp_path):
    """LoRA over the weights of another proof: bound by their root, with the parent verified, too."""
    from pol.release import write_model

    folder = Path(__file__).parent / "zoo"
    parent, child = f"{folder / 'zoo_lora.py'}:Parent", f"{folder / 'zoo_lora.py'}:Child"
    train(parent, tmp_path / "parent")
    write_model(tmp_path / "parent", tmp_path / "base.safetensors")
    settings = {"base": str(tmp_path / "base.safetensors")}
    train(child, tmp_path / "child", settings=settings)
    declaration = genesis_of(tmp_path / "child").spec.declaration
    (base,), (file,) = declaration.frozen, declaration.external
    assert root_of(tmp_path / "base.safetensors") == base.root.digest
    allowed = msgspec.structs.replace(EXACT, externals=(file.digest,))
    with_parent = {"policy": allowed, "parents": [(tmp_path / "parent", parent)]}
    report = check(tmp_path / "child", child, **with_parent)
    assert report.verdict is Verdict.ACCEPT, report.reason()
    assert check(tmp_path / "child", child, policy=allowed).caught_by == 5
    train(parent, tmp_path / "other")
    report = check(tmp_path / "child", child, policy=allowed, parents=[(tmp_path / "other", parent)])
    assert (report.verdict, report.caught_by) == (Verdict.REJECT, 5)
    sizes = [path.stat().st_size for path in (tmp_path / "child" / "checkpoints").iterdir()]
    assert max(sizes) < (tmp_path / "base.safetensors").stat().st_size


@pytest.mark.parametrize("name", ["OwnWorkers", "Working"])
def test_a_program_that_is_left_leaves_no_worker(name, proofs):
    """At once: an iterator that the garbage collector finds in a circle waits for its workers for seconds."""
    report = check(proofs(name), HONEST[name], policy=policy_for(proofs(name)))
    assert report.verdict is Verdict.ACCEPT
    assert not multiprocessing.active_children()
