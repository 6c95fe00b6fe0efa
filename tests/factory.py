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

from pol.attacks.registry import REGISTRY
from pol.auditor import LocalAuditor
from pol.keys import SigningKey
from pol.profile import Profile
from pol.prover import record
from pol.replay.inprocess import InProcess
from pol.verifier import verify

RECIPE = f"{Path(__file__).parent / 'recipes' / 'toy.py'}:Toy"
EVERY = 3
STEPS = 14  # not a multiple of EVERY: five intervals, the last of two steps
NONCE = bytes(32)


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

    def proof(self, keep=1):
        """An honest proof that keeps every ``keep``-th checkpoint; not to be changed."""
        out = self.folder / f"honest-{keep}"
        if not out.exists():
            options = {"every": EVERY, "keep": keep, "profile": Profile(threads=1), "executor": InProcess()}
            with same_every_time("honest"):
                record(RECIPE, out, key=self.keys["prover"], **options)
        return out

    def copy(self, where, keep=1):
        """A copy of an honest proof, to be changed."""
        return Path(shutil.copytree(self.proof(keep), where / "proof"))

    def forgery(self, name, keep=1):
        """A forgery of an honest proof; not to be changed."""
        if (name, keep) not in self._forgeries:
            attack = REGISTRY[name]
            out = self.folder / f"{name}-{keep}"
            target = self.proof(keep)
            with same_every_time(name):
                forgery = attack.forge(target, out, self.keys[attack.forger], RECIPE, InProcess())
            self._forgeries[name, keep] = forgery
        return self._forgeries[name, keep]


@functools.cache
def factory():
    """The factory of this test session."""
    return Factory()


def check(proof, **options):
    """Verify in process, with a fixed nonce."""
    with LocalAuditor(RECIPE, executor=InProcess()) as auditor:
        return verify(proof, auditor=auditor, **{"nonce": NONCE, **options})
