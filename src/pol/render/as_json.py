"""Results as plain values for JSON. The form of a report is documented in ``docs/report.schema.json``."""

from __future__ import annotations

from typing import Any

import msgspec

from pol.proof.forecast import Forecast
from pol.proof.policy import Policy
from pol.proof.report import Report
from pol.proof.summary import Summary


def report(result: Report) -> dict[str, Any]:
    """A report, with the reason of its verdict and the number of the step that caught a forgery."""
    return {**msgspec.to_builtins(result), "reason": result.reason(), "caught_by": result.caught_by}


def summary(result: Summary, claimant: str | None) -> dict[str, Any]:
    """What a proof says, and the fingerprint of its claimant."""
    return {**msgspec.to_builtins(result), "claimant": claimant, "final_loss": result.final_loss}


def policy(result: Policy) -> dict[str, Any]:
    """A policy, every field of it."""
    found: dict[str, Any] = msgspec.to_builtins(result)
    return found


def forecast(result: Forecast, commands: list[str]) -> dict[str, Any]:
    """A forecast, and the commands that record what it recommends, and verify that; none if it recommends nothing."""
    return {**msgspec.to_builtins(result), "commands": commands}


def encode(value: Any) -> str:
    """One JSON object on one line."""
    return msgspec.json.encode(value).decode()
