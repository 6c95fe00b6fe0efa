"""Recording and verifying in this process, for the tests of the zoo."""

import ast
from pathlib import Path

from pol.auditor import LocalAuditor
from pol.keys import SigningKey
from pol.profile import Profile
from pol.proof.policy import EXACT
from pol.prover import record
from pol.replay.inprocess import InProcess
from pol.verifier import verify

ZOO = Path(__file__).parent
KEY = SigningKey.generate()


def recipes(file):
    """References of all recipes in a file of the zoo that can be recorded: those with a docstring or a build."""
    names = [node.name for node in ast.parse((ZOO / file).read_text()).body if isinstance(node, ast.ClassDef)]
    if not names:
        raise ValueError(f"no recipes in {file}")
    return {name: f"{ZOO / file}:{name}" for name in names}


def train(recipe, out, **options):
    """Record in this process."""
    return record(recipe, out, **{
        "key": KEY, "every": 1, "keep": 1, "profile": Profile(threads=1), "executor": InProcess(), **options,
    })  # fmt: skip


def check(proof, recipe, *, policy=EXACT, settings=None, executor=None, **options):
    """Verify in this process."""
    auditor = LocalAuditor(recipe, settings, executor or InProcess())
    return verify(proof, policy=policy, auditor=auditor, **options)
