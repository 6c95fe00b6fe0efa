"""Honest proofs of the toy recipe, recorded once, and forgeries of them, made once: a negative test is three lines."""

import functools
import hashlib
import itertools
import shutil
import tempfile
import weakref
from pathlib import Path
from unittest import mock

from cryptography.hazmat.primitives.asymmetric import ec
from msgspec import structs
from safetensors.torch import load_file, save_file

from cases import collected
from pol.attacks.attack import Attack
from pol.attacks.registry import REGISTRY
from pol.auditor import LocalAuditor
from pol.keys import SigningKey
from pol.policies import load
from pol.profile import Profile
from pol.proof.policy import EXACT, Limits, Policy
from pol.prover import record
from pol.replay.inprocess import InProcess
from pol.verifier import verify
from references import PLAIN, RECIPE

RECIPES = {"huge-decay": PLAIN, "matched-start": PLAIN, "noisy-start": PLAIN}
"""Of attacks that need what the toy recipe does not have: weight decay, a hundred values in a tensor, no norms."""
EVERY = 3
STEPS = 14  # not a multiple of EVERY: five intervals, the last of two steps
NONCE = bytes(32)

TOLERANCE = Policy(
    name="tolerance",
    rule="tolerance",
    limits=Limits(relative=1e-3, absolute=3e-5),
    bounds=structs.replace(load("tolerance").bounds, max_every=10),
)
"""The preset, with room for the intervals of proofs that are made here."""


def recipe_of(name):
    """The recipe that an attack is tried on."""
    return {**RECIPES, **collected("RECIPES")}.get(name, RECIPE)


POLICIES = {"exact": EXACT, "tolerance": TOLERANCE}
"""By the rule that a genesis names."""


def same_every_time(name):
    """A context in which secrets are drawn from ``name``, so that a test session trains the same runs as the last."""
    secrets = (hashlib.sha256(f"{name} {number}".encode()).digest() for number in itertools.count())
    return mock.patch("secrets.token_bytes", side_effect=lambda _: next(secrets))


def known_key(number):
    """A key that is the same every time."""
    return SigningKey(ec.derive_private_key(number, ec.SECP256R1()))


class Factory:
    """One prover's honest proofs, and a thief."""

    def __init__(self):
        self.folder = Path(tempfile.mkdtemp(prefix="pol-factory-"))
        weakref.finalize(self, shutil.rmtree, self.folder, ignore_errors=True)
        self.keys = {"prover": known_key(1), "thief": known_key(2)}
        self._forgeries = {}

    def proof(self, keep=1, rule="exact", recipe=RECIPE):
        """An honest proof that keeps every ``keep``-th checkpoint; not to be changed."""
        out = self.folder / f"honest-{keep}-{rule}-{recipe.rpartition(':')[2]}"
        if not out.exists():
            options = {"every": EVERY, "keep": keep, "profile": Profile(threads=1), "executor": InProcess()}
            with same_every_time("honest"):
                record(recipe, out, key=self.keys["prover"], rule=rule, **options)
        return out

    def copy(self, where, keep=1):
        """A copy of an honest proof, to be changed."""
        return Path(shutil.copytree(self.proof(keep), where / "proof"))

    def given(self):
        """A file of first weights that a verifier gave out."""
        path = self.folder / "given.safetensors"
        if not path.exists():
            first = load_file(self.proof() / "checkpoints" / f"{0:012d}.safetensors")
            weights = {key.partition("/model.")[2]: t for key, t in first.items() if key.startswith(("p", "b"))}
            save_file(weights, path)
        return path

    def forgery(self, name, keep=1, rule="exact"):
        """A forgery of an honest proof; not to be changed."""
        if (name, keep, rule) not in self._forgeries:
            attack, recipe = REGISTRY[name], recipe_of(name)
            out = self.folder / f"{name}-{keep}-{rule}"
            target = self.proof(keep, rule, recipe)
            with same_every_time(name):
                key, policy = self.keys[attack.forger], POLICIES[rule]
                forgery = attack.forge(target, out, key, recipe, InProcess(), policy=policy)
            self._forgeries[name, keep, rule] = forgery
        return self._forgeries[name, keep, rule]


@functools.cache
def factory():
    """The factory of this test session."""
    return Factory()


def forge(where, make, forger="prover", *, rule="exact", recipe=RECIPE, keep=1):
    """A forgery made by a function of the test's own; ``where`` is an empty folder."""
    attack, target = Attack("test", "a test", forger, make), factory().proof(keep, rule, recipe)
    with same_every_time("test"):
        return attack.forge(target, where / "out", factory().keys[forger], recipe, InProcess())


def decision(report):
    """What a report says."""
    return report.verdict, report.caught_by


def judge(name, keep=1, rule="exact", policy=None, **options):
    """Verify a forgery as a verifier would who has asked for this rule."""
    forgery = factory().forgery(name, keep, rule)
    if name == "stolen-given":  # it gave out other weights
        options = {"start": factory().given(), **options}
    policy = POLICIES[rule] if policy is None else policy
    return check(forgery.path, forgery.recipe, model=forgery.model, policy=policy, **options)


def check(proof, recipe=RECIPE, **options):
    """Verify in process, with a fixed nonce."""
    with LocalAuditor(recipe, executor=InProcess()) as auditor:
        return verify(proof, auditor=auditor, **{"nonce": NONCE, **options})
