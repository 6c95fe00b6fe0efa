"""Policies as files: presets, what a file may say, and what each mistake is told."""

import tomllib
from importlib import resources
from pathlib import Path

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from factory import known_key
from pol import canonical, policies
from pol.digest import sha256
from pol.errors import AuthenticityError, FormatError, UsageError
from pol.policies import PRESETS, dump, load
from pol.proof import calibration as calibration_format
from pol.proof.policy import (
    EXACT,
    LEVELS,
    Bounds,
    Challenge,
    Limits,
    Paper,
    Policy,
    Reference,
    check_policy,
    policy_digest,
)

ROOT = Path(__file__).parents[1]
DIGEST = "sha256:" + "ab" * 32


@pytest.fixture
def file(tmp_path):
    """Write a policy file; its path as text."""

    def write(text):
        path = tmp_path / "mine.toml"
        path.write_bytes(text if isinstance(text, bytes) else text.encode())
        return str(path)

    return write


# -- presets ------------------------------------------------------------------------------------------------------


def test_exact_is_the_default():
    assert load("exact") == EXACT


def test_exact_full_replays_everything():
    full = msgspec.structs.replace(EXACT.challenge, strategy="all")
    assert load("exact-full") == msgspec.structs.replace(EXACT, name="exact-full", challenge=full)


def test_tolerance_has_all_its_clauses():
    found = load("tolerance")
    assert (found.rule, found.procedure, found.assurance) == ("tolerance", "eight-steps", EXACT.assurance)
    assert found.limits == Limits(relative=1e-3, absolute=3e-5, floor=4.0, drift=0.01, refute=0.5)
    off = {name for name in Bounds.__struct_fields__ if getattr(found.bounds, name) == getattr(Bounds(), name)}
    assert off == {"min_steps", "min_epochs"}  # for a verifier to say
    assert (found.bounds.learning_rate, found.bounds.rate_times_decay, found.bounds.momentum) == (10.0, 0.1, 0.9999)
    assert found.bounds.max_every == 1
    assert (found.matmul, found.dtypes, found.challenge) == (("highest",), ("F32", "F64"), EXACT.challenge)


def test_paper_2021_is_the_original():
    found = load("paper-2021")
    assert (found.procedure, found.paper) == ("paper-2021", Paper(top=2, level=0.01))
    assert (found.assurance, found.order, found.limits) == ("observed", "permutation", None)


@pytest.mark.parametrize("name", PRESETS)
def test_presets_are_themselves(name):
    found = load(name)
    assert found.name == name
    assert policies.about(name).endswith(".")
    assert load(name) == found


def test_every_preset_is_a_file_and_every_file_a_preset():
    assert {path.stem for path in (ROOT / "src" / "pol" / "presets").iterdir()} == set(PRESETS)


def test_every_limit_of_a_preset_has_a_reason():
    """A comment on its line, or on the line above its table or its block."""
    for name in PRESETS:
        lines = policies._text(name).splitlines()
        explained = False
        for line in lines:
            explained = "#" in line or (explained and bool(line.strip()))
            if " = " in line.partition("#")[0]:
                assert explained, f"{name}: {line}"


def test_presets_are_in_the_wheel():
    """They are in the package's folder, all of which is packed."""
    build = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["hatch"]["build"]["targets"]["wheel"]
    assert build == {"packages": ["src/pol"]}
    for name in PRESETS:
        assert resources.files("pol").joinpath("presets", f"{name}.toml").is_file()


# -- files --------------------------------------------------------------------------------------------------------


def test_an_empty_file_is_the_default_under_its_own_name(file):
    assert load(file("")) == msgspec.structs.replace(EXACT, name="mine")


def test_a_base_is_changed_key_by_key(file):
    found = load(file('base = "tolerance"\nmatmul = []\n[limits]\nrelative = 2e-3\n[bounds]\nmin_steps = 100\n'))
    base = load("tolerance")
    assert found == msgspec.structs.replace(
        base,
        name="mine",
        matmul=(),
        limits=msgspec.structs.replace(base.limits, relative=2e-3),
        bounds=msgspec.structs.replace(base.bounds, min_steps=100),
    )


def test_a_preset_goes_before_a_file_of_its_name(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("exact").write_text('constants = "any"')
    assert load("exact") == EXACT
    assert load("./exact").constants == "any"


def test_the_digest_is_of_every_field():
    full = Policy(
        limits=Limits(relative=1, absolute=1, reference=1.0), paper=Paper(fraction=0.01, delta={"l2": 1.0}),
        reference=Reference(calibration=DIGEST, recipe=DIGEST, l1=1, l2=1, linf=1, cos=1),
    )  # fmt: skip
    digests = {policy_digest(full)}
    count = 0
    for place, value in _leaves(msgspec.to_builtins(full)):
        digests.add(policy_digest(_with(full, place, _other(value))))
        count += 1
    assert count > 40
    assert len(digests) == count + 1


def _leaves(value, place=()):
    if isinstance(value, dict) and value:
        for key, inner in value.items():
            yield from _leaves(inner, (*place, key))
    else:
        yield place, value


def _other(value):
    if isinstance(value, bool):
        return not value
    if isinstance(value, int | float):
        return value + 1
    if isinstance(value, list | tuple):
        return ("more",)
    return {"a": "default"} if isinstance(value, dict) else f"{value} more"


def _with(struct, place, value):
    name, *rest = place
    inner = getattr(struct, name)
    if rest:
        value = {**inner, rest[0]: value} if isinstance(inner, dict) else _with(inner, rest, value)
    return msgspec.structs.replace(struct, **{name: value})


sizes = st.floats(0, 1e300)
shares = st.floats(0, 1, exclude_min=True, exclude_max=True)
naturals = st.integers(0, 2**53 - 1)
digests = st.lists(st.binary(min_size=32, max_size=32).map(lambda b: f"sha256:{b.hex()}"), max_size=2).map(tuple)
ALL = st.builds(
    Policy,
    name=st.text(max_size=8),
    version=naturals,
    rule=st.just("tolerance"),
    procedure=st.just("paper-2021"),
    keys=digests,
    recipes=digests,
    externals=digests,
    matmul=st.sampled_from([(), ("highest",), ("high", "medium")]),
    dtypes=st.lists(st.text(max_size=3), max_size=2).map(tuple),
    assurance=st.sampled_from(LEVELS),
    beacon=st.just("0" * 64),
    genesis=st.sampled_from([None, DIGEST]),
    challenge=st.builds(Challenge, strategy=st.sampled_from(["all", "mix"]), top=naturals, uniform=naturals),
    laws=st.dictionaries(st.text(max_size=5), st.sampled_from(["default", "normal(0, 0.02)"]), max_size=2),
    level=shares,
    limits=st.builds(
        Limits, relative=st.floats(0, 0.99), absolute=sizes, floor=sizes, reference=st.one_of(st.none(), sizes)
    ),
    bounds=st.builds(Bounds, learning_rate=st.one_of(st.none(), sizes), moved=st.booleans(), min_steps=naturals),
    reference=st.builds(
        Reference, calibration=st.just(DIGEST), recipe=st.just(DIGEST), l1=sizes, l2=sizes, linf=sizes, cos=sizes
    ),
    paper=st.builds(
        Paper,
        top=naturals,
        delta=st.one_of(st.none(), st.dictionaries(st.sampled_from(["l1", "cos"]), sizes, min_size=1)),
        choose=st.lists(st.sampled_from(["l1", "linf"]), max_size=2).map(tuple),
    ),
    max_steps=st.one_of(st.none(), naturals),
)


@given(ALL)
def test_what_is_written_is_read_again(tmp_path_factory, policy):
    path = tmp_path_factory.getbasetemp() / "written.toml"
    path.write_bytes(dump(policy).encode())
    assert load(str(path)) == policy
    assert policy_digest(load(str(path))) == policy_digest(policy)
    path.write_bytes(dump(policy, named=False).encode())
    assert load(str(path)) == msgspec.structs.replace(policy, name="written")


# -- mistakes -----------------------------------------------------------------------------------------------------

WRONG = {
    "a key that there is not": ('asurance = "observed"', "asurance: no such key; allowed: name, version"),
    "in a table": ("[limits]\nrelatve = 1.0", "limits.relatve: no such key; allowed: relative, absolute"),
    "in a table of a table": ("[paper]\ndelta = {l3 = 1.0}", "paper.delta"),
    "a table that is a number": ("challenge = 3", "challenge: Expected `object`"),
    "no word of the list": ('rule = "exakt"', 'rule: Invalid enum value \'exakt\'; allowed: one of "exact", "toler'),
    "a precision that there is not": ('matmul = ["low"]', "matmul.0"),
    "text for a list": ('keys = "sha256"', "keys: Expected `array`, got `str`; allowed: a list, each a digest"),
    "no digest": ('recipes = ["abc"]', "recipes.0"),
    "half a nonce": ('beacon = "00"', "allowed: 64 hexadecimal digits"),
    "a fraction for a count": ("[challenge]\ntop = 1.0", "challenge.top: Expected `int`"),
    "a count below none": ("[challenge]\nuniform = -1", "allowed: a whole number of at least 0"),
    "a negative limit": ("[limits]\nrelative = -1.0\nabsolute = 1.0", "limits.relative: Expected `float` >= 0.0"),
    "a truth value for a number": ("level = true", "level: Expected `float`, got `bool`"),
    "a number for a truth value": ("[bounds]\nmoved = 1", "allowed: true or false"),
    "nan": ("[limits]\nrelative = nan\nabsolute = 1.0", "limits.relative: nan is not allowed"),
    "inf": ("[limits]\nrelative = 1e-3\nabsolute = inf", "limits.absolute: inf is not allowed"),
    "nearly inf": ("[limits]\nrelative = 1e-3\nabsolute = 1e305", "limits.absolute: Expected `float` <= 1e+300"),
    "nan in a list": ("keys = [nan]", "keys.0: nan is not allowed"),
    "too large a number": ("max_steps = 9007199254740993", "max_steps: whole numbers beyond 2**53 - 1"),
    "a level at which nothing fails": ("level = 0.0", "level: Expected `float` > 0.0; allowed: a number above 0"),
    "a level at which everything fails": ("level = 1.0", "level: Expected `float` < 1.0"),
    "a date": ("name = 2026-01-01", "name: Expected `str`"),
    "relative alone": (
        "[limits]\nrelative = 1e-3",
        "a relative limit alone is breakable: where lr * weight_decay is 2",
    ),
    "absolute alone": ("[limits]\nabsolute = 1e-3", "an absolute limit alone is breakable: a forger takes smaller"),
    "neither": ("[limits]\nfloor = 4.0", "limits needs relative and absolute"),
    "a limit of the whole move": ("[limits]\nrelative = 1.0\nabsolute = 1.0", "a state that never moved would pass"),
    "tolerance without limits": ('rule = "tolerance"', "rule tolerance and a table [limits] go together"),
    "limits without tolerance": ("[limits]\nrelative = 0.1\nabsolute = 0.1", "rule tolerance and a table [limits]"),
    "a share of nothing": ('base = "tolerance"\n[limits]\nreference = 0.1', "name a calibration"),
    "a fraction of nothing": ('base = "paper-2021"\n[paper]\nfraction = 0.01', "name a calibration"),
    "paper without its procedure": ("[paper]\ntop = 2", "procedure paper-2021 and a table [paper] go together"),
    "the procedure without its table": ('procedure = "paper-2021"', "go together"),
    "a choice by nothing that there is": ('base = "paper-2021"\n[paper]\nchoose = ["l3"]', "paper.choose.0"),
    "deltas of nothing": ('base = "paper-2021"\n[paper]\ndelta = {}', "paper.delta names no metric; there are l1, l2"),
    "a genesis without its nonce": (f'genesis = "{DIGEST}"', "give beacon, too"),
    "no law": ('[laws]\n"*" = "gaussian"', "'gaussian' is no law of initialisation"),
    "no base": ('base = "strict"', "base: 'strict' is no preset; allowed: exact, exact-full"),
    "a base that is no name": ("base = [1]", "base: [1] is no preset"),
    "a calibration without its key": ('calibration = "c.json"', "calibration_key: expected the fingerprint"),
    "a key without its calibration": (f'calibration_key = "{DIGEST}"', "calibration: expected the path"),
    "no such calibration": (f'calibration = "c.json"\ncalibration_key = "{DIGEST}"', "c.json: no such file"),
    "a key twice": ("level = 0.1\nlevel = 0.1", "not TOML: Cannot overwrite a value"),
    "a table twice": ("[limits]\n[limits]", "not TOML"),
    "no TOML": ("rule:", "not TOML"),
    "no text": (b"\xff", "not TOML"),
    "nested without end": ("name = " + "[" * 10_000, "not TOML"),
    "too large": (b"#" * (2**20 + 1), "more than 1048576 bytes"),
}


@pytest.mark.parametrize("case", WRONG)
def test_a_mistake_is_told(case, file):
    text, message = WRONG[case]
    path = file(text)
    with pytest.raises(UsageError) as error:
        load(path)
    assert str(error.value).startswith(path)
    assert message in str(error.value)


@pytest.mark.parametrize("path", ["strict", "no/such.toml", "."])
def test_no_such_policy(path):
    with pytest.raises(UsageError, match="neither a file nor one of exact, exact-full, tolerance, paper-2021"):
        load(path)


def test_every_field_is_described():
    """No error message has to say only "a table" of a plain value."""
    for field in msgspec.inspect.type_info(Policy).fields:
        assert policies.describe(field.type) != "a table" or policies._fields(field.type), field.name


@pytest.mark.parametrize(
    "policy",
    [
        Policy(rule="tolerance"),
        Policy(limits=Limits(relative=0.1, absolute=0.1)),
        Policy(procedure="paper-2021"),
        Policy(paper=Paper()),
        Policy(genesis=DIGEST),
        Policy(rule="tolerance", limits=Limits(relative=0.1, absolute=0.1, reference=0.1)),
        Policy(procedure="paper-2021", paper=Paper(fraction=0.01)),
        Policy(procedure="paper-2021", paper=Paper(delta={})),
        Policy(procedure="paper-2021", paper=Paper(delta={"l3": 1.0})),
        Policy(procedure="paper-2021", paper=Paper(choose=("l3",))),
    ],
)
def test_contradictory_policies(policy):
    with pytest.raises(UsageError):
        check_policy(policy)


# -- calibrations -------------------------------------------------------------------------------------------------


def calibrated(key):
    """A signed calibration of two runs."""
    spread = {"mean": "2.0", "min": "2.0", "max": "2.0"}
    metrics = {"l1": {"mean": "4.0", "min": "4.0", "max": "4.0"}, "l2": spread, "linf": spread, "cos": spread}
    value = {
        "format": "pol/calibration/v2", "tool": "pol", "created": "2026-01-01T00:00:00+00:00",
        "signer": key.public_pem,
        "recipe": {"name": "Toy", "digest": DIGEST, "configuration": {}},
        "profile": {"threads": 1},
        "platform": dict.fromkeys(("python", "torch", "numpy", "machine", "capability"), "x"),
        "steps": 3, "runs": 2, "pairs": 1,
        "final": [{"digest": "sha256:" + digit * 64, "size": 1} for digit in "12"],
        "parameters": metrics, "state": metrics,
        "tensors": {"model.w": {"size": 4, "mean": "2.0", "min": "2.0"}},
        "noise": None,
    }  # fmt: skip
    return msgspec.convert(value, calibration_format.Calibration)


def signed(folder, key, calibration=None):
    payload = canonical.encode(calibration or calibrated(key))
    (folder / "calibration.json").write_bytes(key.sign(payload, calibration_format.PAYLOAD_TYPE))
    return f'base = "tolerance"\ncalibration = "calibration.json"\ncalibration_key = "{key.fingerprint}"\n'


def test_a_calibration_gives_the_reference(tmp_path, file, monkeypatch):
    key = known_key(3)
    text = signed(tmp_path, key) + "[limits]\nreference = 0.01\n"
    monkeypatch.chdir("/")  # its path is relative to the policy file
    found = load(file(text))
    digest = calibration_format.calibration_digest(calibrated(key))
    settings = sha256(canonical.encode(calibrated(key).recipe.configuration))
    assert found.reference == Reference(
        calibration=digest, recipe=DIGEST, l1=4.0, l2=2.0, linf=2.0, cos=2.0, configuration=settings
    )
    assert load(file(dump(found))) == found


def test_another_key_is_not_the_one_that_was_pinned(tmp_path, file):
    text = signed(tmp_path, known_key(3))
    signed(tmp_path, known_key(4))
    with pytest.raises(UsageError, match="not by calibration_key"):
        load(file(text))


def test_the_pinned_key_must_have_signed(tmp_path, file):
    text = signed(tmp_path, known_key(3))
    signed(tmp_path, known_key(4), calibrated(known_key(3)))
    with pytest.raises(AuthenticityError):
        load(file(text))


def test_a_malformed_calibration(tmp_path, file):
    text = signed(tmp_path, known_key(3))
    (tmp_path / "calibration.json").write_bytes(b"{}")
    with pytest.raises(FormatError, match=r"calibration\.json"):
        load(file(text))


def test_a_calibration_and_its_numbers_exclude_each_other(tmp_path, file):
    numbers = tomllib.loads(
        dump(Policy(reference=Reference(calibration=DIGEST, recipe=DIGEST, l1=1, l2=1, linf=1, cos=1)))
    )
    assert numbers["reference"]["l2"] == 1
    text = signed(tmp_path, known_key(3)) + f'[reference]\ncalibration = "{DIGEST}"\n'
    with pytest.raises(UsageError, match="leave one of the two out"):
        load(file(text))
