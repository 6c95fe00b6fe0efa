"""Every attack by name."""

from __future__ import annotations

from pol.attacks import data, interpolation, smuggling, tampering, theft
from pol.attacks.attack import Attack

FAMILIES = (tampering, smuggling, interpolation, theft, data)

REGISTRY: dict[str, Attack] = {attack.name: attack for family in FAMILIES for attack in family.ATTACKS}
