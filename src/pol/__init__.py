"""Proof-of-learning: evidence, which anyone can check, that a model came from the training its owner claims.

    import pol

    proof = pol.record("train.py:MyRecipe", "proof/", key=pol.SigningKey.generate(), every=10)
    report = pol.verify("proof/", recipe="train.py:MyRecipe")
    report.raise_for_verdict()

Names are loaded when they are first used: ``import pol`` is quick, and no name here imports torch.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from pol.version import __version__

if TYPE_CHECKING:
    from pol.auditor import LocalAuditor as LocalAuditor
    from pol.calibrator import calibrate as calibrate
    from pol.calibrator import read_calibration as read_calibration
    from pol.errors import AuthenticityError as AuthenticityError
    from pol.errors import FormatError as FormatError
    from pol.errors import IntegrityError as IntegrityError
    from pol.errors import PolError as PolError
    from pol.errors import RejectedProof as RejectedProof
    from pol.errors import ReplayError as ReplayError
    from pol.errors import StoreError as StoreError
    from pol.errors import UsageError as UsageError
    from pol.keys import SigningKey as SigningKey
    from pol.planner import plan as plan
    from pol.profile import Profile as Profile
    from pol.proof.policy import EXACT as EXACT
    from pol.proof.policy import Challenge as Challenge
    from pol.proof.policy import Policy as Policy
    from pol.proof.report import Report as Report
    from pol.proof.report import Verdict as Verdict
    from pol.prover import Proof as Proof
    from pol.prover import record as record
    from pol.release import write_model as write_model
    from pol.replay.recipe import Recipe as Recipe
    from pol.verifier import verify as verify

_HOMES = {
    "AuthenticityError": "pol.errors",
    "Challenge": "pol.proof.policy",
    "EXACT": "pol.proof.policy",
    "FormatError": "pol.errors",
    "IntegrityError": "pol.errors",
    "LocalAuditor": "pol.auditor",
    "PolError": "pol.errors",
    "Policy": "pol.proof.policy",
    "Profile": "pol.profile",
    "Proof": "pol.prover",
    "Recipe": "pol.replay.recipe",
    "RejectedProof": "pol.errors",
    "ReplayError": "pol.errors",
    "Report": "pol.proof.report",
    "SigningKey": "pol.keys",
    "StoreError": "pol.errors",
    "UsageError": "pol.errors",
    "Verdict": "pol.proof.report",
    "calibrate": "pol.calibrator",
    "plan": "pol.planner",
    "read_calibration": "pol.calibrator",
    "record": "pol.prover",
    "regenerate": "pol.responder",
    "verify": "pol.verifier",
    "write_model": "pol.release",
}
"""Where each public name is defined."""

__all__ = [
    "EXACT",
    "AuthenticityError",
    "Challenge",
    "FormatError",
    "IntegrityError",
    "LocalAuditor",
    "PolError",
    "Policy",
    "Profile",
    "Proof",
    "Recipe",
    "RejectedProof",
    "ReplayError",
    "Report",
    "SigningKey",
    "StoreError",
    "UsageError",
    "Verdict",
    "__version__",
    "calibrate",
    "plan",
    "read_calibration",
    "record",
    "regenerate",
    "verify",
    "write_model",
]


def __getattr__(name: str) -> Any:
    """Load a public name when it is first asked for."""
    if name not in _HOMES:
        raise AttributeError(f"module 'pol' has no attribute {name!r}")
    value = getattr(importlib.import_module(_HOMES[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    """What is here already, and what would be loaded."""
    return sorted({*globals(), *__all__})
