"""Policies as files: presets by name, a verifier's own as TOML.

A file says what differs from the default, or from the preset that it names as its ``base``: keys of tables are set one
by one, lists are replaced whole. Nothing that a base says can be taken away. Whatever is not understood is refused:
a clause that is misspelt would be a clause that nobody checks.
"""

from __future__ import annotations

import json
import math
import re
import tomllib
from importlib import resources
from pathlib import Path
from typing import Any

import msgspec
from msgspec import inspect

from pol import keys, laws
from pol.digest import DIGEST_PATTERN
from pol.errors import UsageError
from pol.proof.calibration import MAX_CALIBRATION, Calibration, parse_calibration, reference_of
from pol.proof.policy import Policy, check_policy

PRESETS = ("exact", "exact-full", "tolerance", "paper-2021")
"""Names that stand for a file of the package."""

MAX_POLICY = 2**20
"""Largest policy file: 1 MiB, room for ten thousand digests of recipes, keys and files at some 80 bytes each."""

MAX_INTEGER = 2**53 - 1
"""Largest whole number: the digest of a policy is of its JSON, and readers of JSON round larger ones."""

ONLY_IN_FILES = {
    "base": "the name of a preset",
    "calibration": "the path of a calibration file",
    "calibration_key": "the fingerprint of the key that signed the calibration",
}
"""Keys of a file that are no fields of the policy, but say where fields come from."""

_ALONE = {
    "relative": "a relative limit alone is breakable: where lr * weight_decay is 2, every honest step moves the "
    "weights by twice their norm, and a share of that is room for any forgery. Give absolute, too",
    "absolute": "an absolute limit alone is breakable: a forger takes smaller steps, and more of them, each within "
    "the limit, and arrives anywhere. Give relative, too",
}
"""Why one of the two limits is not enough, by the one that was given (attack study, section 0)."""


def load(name_or_path: str) -> Policy:
    """Read a policy: a preset by its name, or a TOML file by its path (``./exact`` is a path, ``exact`` a preset).

    Raises:
        UsageError: there is no such file, or it is not a policy; the text names file and key, and what is allowed.
        FormatError: the calibration that it names is malformed.
        AuthenticityError: nobody signed that calibration.
    """
    if name_or_path in PRESETS:
        return _policy(_preset(name_or_path), f"preset {name_or_path}", name_or_path, Path())
    path = Path(name_or_path)
    if not path.is_file():
        raise UsageError(f"{name_or_path}: no such policy: neither a file nor one of {', '.join(PRESETS)}")
    with path.open("rb") as file:
        data = file.read(MAX_POLICY + 1)
    return _policy(_parse(data, name_or_path), name_or_path, own_name(name_or_path), path.parent)


def own_name(name_or_path: str) -> str:
    """The name of a policy that does not say another: that of the preset, or of the file."""
    return name_or_path if name_or_path in PRESETS else Path(name_or_path).stem


def about(preset: str) -> str:
    """What a preset is for, in one line: the first of its file."""
    return _text(preset).partition("\n")[0].removeprefix("# ")


def dump(policy: Policy, *, named: bool = True) -> str:
    """A policy as TOML, every field written out; ``load`` reads it as the same policy.

    Args:
        policy: The policy.
        named: Whether its name is written, too; else the file's own name will stand in reports.
    """
    fields = msgspec.to_builtins(policy, builtin_types=())
    if not named:
        del fields["name"]
    flat = [_line(key, value) for key, value in fields.items() if not isinstance(value, dict) and value is not None]
    tables = []
    for key, value in fields.items():
        if isinstance(value, dict) and (value or key in ("limits", "paper")):
            inner = {name: item for name, item in value.items() if not isinstance(item, dict) and item is not None}
            tables.append("\n".join([f"\n[{key}]", *(_line(name, item) for name, item in inner.items())]))
            for name, item in value.items():
                if isinstance(item, dict):
                    tables.append("\n".join([f"\n[{key}.{name}]", *(_line(n, i) for n, i in item.items())]))
    return "\n".join([*flat, *tables]) + "\n"


def _line(key: str, value: Any) -> str:
    name = key if re.fullmatch(r"[A-Za-z0-9_-]+", key) else _string(key)
    if isinstance(value, list | tuple):
        return f"{name} = [{', '.join(map(_string, value))}]"
    return f"{name} = {_string(value) if isinstance(value, str) else str(value).lower()}"


def _string(text: str) -> str:
    """A basic string: JSON's escapes are TOML's, but for one character that TOML wants escaped, too."""
    return json.dumps(text, ensure_ascii=False).replace("\x7f", "\\u007f")


# -- reading ------------------------------------------------------------------------------------------------------


def _text(preset: str) -> str:
    return resources.files("pol").joinpath("presets", f"{preset}.toml").read_text(encoding="utf-8")


def _preset(name: str) -> dict[str, Any]:
    """The content of a preset, with that of its own base under it."""
    found = _parse(_text(name).encode(), f"preset {name}")
    return _merged(_preset(found.pop("base")), found) if "base" in found else found


def _parse(data: bytes, where: str) -> dict[str, Any]:
    if len(data) > MAX_POLICY:
        raise UsageError(f"{where}: more than {MAX_POLICY} bytes: not a policy")
    try:
        return tomllib.loads(data.decode())
    except (ValueError, RecursionError) as error:  # tomllib: bad TOML, bad UTF-8, a number of 5,000 digits
        raise UsageError(f"{where}: not TOML: {error}") from None


def _merged(base: dict[str, Any], change: dict[str, Any]) -> dict[str, Any]:
    """Tables by key, everything else replaced."""
    both = {
        key: _merged(base[key], value) if isinstance(value, dict) and isinstance(base.get(key), dict) else value
        for key, value in change.items()
    }
    return {**base, **both}


def _policy(raw: dict[str, Any], where: str, name: str, folder: Path) -> Policy:
    _known_keys(raw, inspect.type_info(Policy), where, "")
    _finite(raw, where, "")
    base = raw.pop("base", None)
    if base is not None:
        if base not in PRESETS:
            raise UsageError(f"{where}: base: {base!r} is no preset; allowed: {', '.join(PRESETS)}")
        raw = _merged({**_preset(base), "name": name}, raw)
    _both_limits(raw.get("limits"), where)
    calibration, key = raw.pop("calibration", None), raw.pop("calibration_key", None)
    if (calibration, key) != (None, None):
        if "reference" in raw:
            raise UsageError(f"{where}: reference: a calibration gives it; leave one of the two out")
        found = _calibration(calibration, key, folder, where)
        raw["reference"] = reference_of(found)
        if isinstance(limits := raw.get("limits"), dict) and found.noise is not None and found.noise.limits is not None:
            measured = {entry: float(text) for entry, text in found.noise.limits.tensors.items()}
            own = limits.get("tensors", {})
            raw["limits"] = {**limits, "tensors": {**measured, **own} if isinstance(own, dict) else own}
    try:
        policy = msgspec.convert({"name": name, **raw}, Policy, strict=True)
    except msgspec.ValidationError as error:
        raise UsageError(f"{where}: {_explained(str(error))}") from None
    except RecursionError:
        raise UsageError(f"{where}: tables within tables, deeper than any policy") from None
    try:
        for law in policy.laws.values():
            laws.parse(law)
        check_policy(policy)
    except UsageError as error:
        raise UsageError(f"{where}: {error}") from None
    return policy


def _both_limits(limits: object, where: str) -> None:
    if not isinstance(limits, dict):
        return
    given = [name for name in _ALONE if name in limits]
    if len(given) == 1:
        raise UsageError(f"{where}: limits has {given[0]} only; {_ALONE[given[0]]}")
    if not given:
        raise UsageError(f"{where}: limits needs relative and absolute, because either alone is breakable")
    relative = limits["relative"]
    if isinstance(relative, int | float) and relative >= 1:
        raise UsageError(f"{where}: limits.relative: {relative} is not below 1: a state that never moved would pass")


def _calibration(calibration: object, key: object, folder: Path, where: str) -> Calibration:
    """A calibration that the named key has signed."""
    if not isinstance(calibration, str):
        raise UsageError(f"{where}: calibration: expected {ONLY_IN_FILES['calibration']}")
    if not isinstance(key, str) or not re.fullmatch(DIGEST_PATTERN, key):
        raise UsageError(
            f"{where}: calibration_key: expected {ONLY_IN_FILES['calibration_key']} (sha256: and 64 hexadecimal "
            "digits): anybody can sign a calibration, and a large d_ref makes every error small"
        )
    path = folder / calibration
    if not path.is_file():
        raise UsageError(f"{where}: calibration: {path}: no such file")
    with path.open("rb") as file:
        found = parse_calibration(file.read(2 * MAX_CALIBRATION + 1), str(path), keys.verify_envelope)
    if (signer := keys.fingerprint(found.signer)) != key:
        raise UsageError(f"{where}: calibration: {path} is signed by {signer}, not by calibration_key")
    return found


# -- what is wrong with a file ------------------------------------------------------------------------------------


def _known_keys(raw: dict[str, Any], kind: inspect.Type, where: str, path: str) -> None:
    fields = _fields(kind)
    allowed = [*fields, *([] if path else ONLY_IN_FILES)]
    for key, value in raw.items():
        if key not in allowed:
            raise UsageError(f"{where}: {path}{key}: no such key; allowed: {', '.join(allowed)}")
        if isinstance(value, dict) and key in fields and _fields(fields[key]):
            _known_keys(value, fields[key], where, f"{path}{key}.")


def _finite(value: object, where: str, path: str) -> None:
    """Refuse nan and inf, which TOML has: a limit that is not finite limits nothing. And what JSON would round."""
    if isinstance(value, dict | list):
        for key, inner in value.items() if isinstance(value, dict) else enumerate(value):
            _finite(inner, where, f"{path}.{key}" if path else str(key))
    elif isinstance(value, float) and not math.isfinite(value):
        raise UsageError(f"{where}: {path}: {value} is not allowed: numbers must be finite")
    elif isinstance(value, int) and abs(value) > MAX_INTEGER:
        raise UsageError(f"{where}: {path}: whole numbers beyond 2**53 - 1 are not allowed")


def _fields(kind: inspect.Type) -> dict[str, inspect.Type]:
    """Fields of a table, of a type that may also be missing; empty for other types."""
    struct = next((one for one in _options(kind) if isinstance(one, inspect.StructType)), None)
    return {field.name: field.type for field in struct.fields} if struct else {}


def _options(kind: inspect.Type) -> list[inspect.Type]:
    found = list(kind.types) if isinstance(kind, inspect.UnionType) else [kind]
    return [one for one in found if not isinstance(one, inspect.NoneType)]


def _explained(message: str) -> str:
    """A decoding error with the key in front, and what is allowed there."""
    text, _, place = message.replace("`key` in ", "").partition(" - at `$")
    names = re.findall(r"[A-Za-z_0-9]+|\.\.\.", place)
    kind: inspect.Type = inspect.type_info(Policy)
    for name in names:
        inner = _options(kind)[0]
        if isinstance(inner, inspect.DictType):
            kind = inner.value_type
        else:
            kind = inner.item_type if isinstance(inner, inspect.VarTupleType) else _fields(inner).get(name, inner)
    return f"{'.'.join(names) or 'policy'}: {text}; allowed: {describe(kind)}"


def describe(kind: inspect.Type) -> str:
    """What values a field takes, in words."""
    match _options(kind)[0]:
        case inspect.LiteralType(values=values):
            return "one of " + ", ".join(json.dumps(value) for value in values)
        case inspect.IntType(ge=least):
            return f"a whole number{'' if least is None else f' of at least {least}'}"
        case inspect.FloatType(ge=least, gt=above, le=most, lt=below):
            ends = {"from": least, "above": above, "to": most, "below": below}
            return " ".join(["a number", *(f"{word} {end:g}" for word, end in ends.items() if end is not None)])
        case inspect.BoolType():
            return "true or false"
        case inspect.StrType(pattern=pattern):
            digest = "a digest: sha256: or blake3: and 64 hexadecimal digits"
            return "text" if pattern is None else digest if pattern == DIGEST_PATTERN else "64 hexadecimal digits"
        case inspect.VarTupleType(item_type=item):
            return f"a list, each {describe(item)}"
        case inspect.DictType(key_type=key, value_type=value):
            return f"a table, each key {describe(key)}, each value {describe(value)}"
    return "a table"
