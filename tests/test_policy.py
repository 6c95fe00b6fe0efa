"""What the clauses of a policy stop, one by one, and that none of them ever lets something in."""

import functools
import tempfile
from pathlib import Path

import msgspec
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from factory import EVERY, PLAIN, RECIPE, STEPS, TOLERANCE, check, factory, known_key
from pol.attacks.forger import Forger
from pol.profile import Profile
from pol.proof.policy import EXACT, LEVELS, Bounds, Challenge, Limits, Policy, Reference
from pol.proof.report import Verdict
from pol.prover import record
from pol.replay.inprocess import InProcess
from pol.verifier import clauses, drift, eight, hyperparameters, plausible, tolerance

NOBODY = "sha256:" + "0" * 64
ITS_OWN = "sha256:" + "f" * 64
"""In a reference: the recipe of the proof that is verified."""
BEACON = bytes(range(32))
LOOSE = msgspec.structs.replace(EXACT, assurance="observed", order="permutation", constants="any")
LAX = msgspec.structs.replace(
    TOLERANCE,
    assurance="observed",
    order="permutation",
    bounds=Bounds(),
    limits=Limits(relative=0.5, absolute=1.0, drift=1e9),
)
HALVED, DOUBLED = (PLAIN.replace(":Plain", f":{name}") for name in ("Halved", "Doubled"))
READING = """
from pathlib import Path
from toy import Toy
class Reading(Toy):
    def build(self):
        Path(__file__).with_name("mask.txt").read_text()
        return super().build()
"""


@functools.cache
def folder():
    return Path(tempfile.mkdtemp(prefix="pol-policies-", dir=factory().folder))


def changed(struct, **fields):
    """A policy, with fields of its tables changed too: ``bounds__moved=True``."""
    for name, value in fields.items():
        outer, _, inner = name.partition("__")
        value = changed(getattr(struct, outer), **{inner: value}) if inner else value
        struct = msgspec.structs.replace(struct, **{outer: value})
    return struct


# -- proofs ---------------------------------------------------------------------------------------------------------


def recorded(name, recipe=RECIPE, **options):
    options = {"every": EVERY, "profile": Profile(threads=1), "executor": InProcess(), **options}
    record(recipe, folder() / name, key=known_key(1), **options)
    return folder() / name


def sealed(name, change):
    """An honest run under rule tolerance, with something changed."""
    forger = Forger(factory().proof(rule="tolerance"))
    change(forger)
    forger.seal(folder() / name, known_key(1))
    return folder() / name


def nearly(forger):
    """The last state, off by what rounding might explain."""
    forger.states[STEPS].tensors["parameter/model.0.weight"] *= 1 + 1e-5


def other_loss(forger):
    nearly(forger)  # a state that is equal has the loss that it has
    forger.replace(4, loss=repr(float(forger.intervals[4].loss) * 1.01))


def fallen_loss(forger):
    nearly(forger)
    forger.replace(4, loss="1e-06")


def coarse_momentum(forger):
    key = "optimizer/optimizer.model.0.weight.momentum_buffer"
    for step in range(EVERY, STEPS, EVERY):
        forger.states[step].tensors[key] = forger.states[step].tensors[key].to(torch.bfloat16)


def standing(forger):
    """The parameters of the first state after each of the first three intervals of five, too."""
    first = {key: value for key, value in forger.states[0].tensors.items() if key.startswith("parameter/")}
    for number in (1, 2, 3):
        forger.states[number * EVERY].tensors.update(first)


def resting(forger):
    """The same after the first alone: an interval whose loss has no gradient."""
    first = {key: value for key, value in forger.states[0].tensors.items() if key.startswith("parameter/")}
    forger.states[EVERY].tensors.update(first)


def test_some_windows_may_stand_still_for_a_replay_to_judge():
    path = sealed("resting", resting)
    report = check(path, policy=changed(ANYTHING, bounds__moved=True))
    assert report.verdict is Verdict.ACCEPT, report.reason()  # these limits allow anything
    report = check(path, policy=TOLERANCE)
    assert TOLERANCE.bounds.moved
    assert (report.verdict, report.caught_by) == (Verdict.REJECT, 7), report.reason()


def own_order():
    declaration = Forger(factory().proof()).genesis.spec.declaration
    rng = np.random.default_rng(0)
    return np.stack([rng.permutation(declaration.samples) for _ in range(declaration.epochs)])


def reading():
    for name, text in (
        ("toy.py", Path(RECIPE.rpartition(":")[0]).read_text()),
        ("reading.py", READING),
        ("mask.txt", ""),
    ):
        (folder() / name).write_text(text)
    return f"{folder() / 'reading.py'}:Reading"


MAKERS = {
    "exact": lambda: (factory().proof(), RECIPE),
    "sparse": lambda: (factory().proof(2, rule="tolerance"), RECIPE),
    "tolerance": lambda: (factory().proof(rule="tolerance"), RECIPE),
    "near": lambda: (sealed("near", nearly), RECIPE),
    "other loss": lambda: (sealed("other-loss", other_loss), RECIPE),
    "fallen": lambda: (sealed("fallen", fallen_loss), RECIPE),
    "coarse momentum": lambda: (sealed("coarse", coarse_momentum), RECIPE),
    "plain": lambda: (recorded("plain", PLAIN), PLAIN),
    "halved": lambda: (recorded("halved", HALVED, rule="tolerance"), HALVED),
    "doubled": lambda: (recorded("doubled", DOUBLED, rule="tolerance"), DOUBLED),
    "declared": lambda: (recorded("declared", init_seed=7), RECIPE),
    "order": lambda: (recorded("order", order=own_order()), RECIPE),
    "beacon": lambda: (recorded("beacon", beacon=BEACON), RECIPE),
    "at rest": lambda: (recorded("rest", PLAIN, settings={"lr": 0.0}), PLAIN),
    "standing": lambda: (sealed("standing", standing), RECIPE),
    "reading": lambda: (recorded("reading-proof", reading()), reading()),
    **{
        name: functools.partial(lambda name: (factory().forgery(name).path, RECIPE), name)
        for name in ("edited-checkpoint", "swapped-buffers", "later-momentum", "flipped-labels", "swapped-final")
    },
}


@functools.cache
def proof(name):
    return MAKERS[name]()


@functools.cache
def _verdict(name, encoded):
    path, recipe = proof(name)
    return check(path, recipe, policy=msgspec.json.decode(encoded, type=Policy))


def report(name, policy):
    """The report on a proof, made once for each policy; its reference is of the proof's recipe, or says whose."""
    if policy.reference is not None and policy.reference.recipe == ITS_OWN:
        policy = changed(policy, reference__recipe=Forger(proof(name)[0]).genesis.recipe.digest)
    return _verdict(name, msgspec.json.encode(policy))


# -- each clause: the run that it stops, and that nothing else stops it -------------------------------------------


def digest_of(name):
    return report(name, LOOSE).genesis


D_REF = Reference(calibration=NOBODY, recipe=ITS_OWN, l1=1.0, l2=1.0, linf=1.0, cos=1.0)
OTHERS = changed(D_REF, recipe=NOBODY)
ANYTHING = changed(LAX, limits=Limits(relative=1e200, absolute=1e200, loss=1e300, drift=1e300))
TIGHT = {"relative": 1e-12, "absolute": 1e-12, "floor": 0.0}
# Name -> proof, policy that accepts it, what makes it stricter, step that stops it, and what is said.
CLAUSES = {
    "keys": ("exact", EXACT, {"keys": (NOBODY,)}, 1, "which you did not pin"),
    "recipes": ("exact", EXACT, {"recipes": (NOBODY,)}, 4, "is none that your policy allows"),
    "matmul": ("exact", EXACT, {"matmul": ("high", "medium")}, 4, "the policy allows high, medium"),
    "dtypes": ("exact", EXACT, {"dtypes": ("F64",)}, 4, "is F32, the policy allows F64"),
    "threads": ("exact", EXACT, {"max_threads": 0}, None, "asks for 1 threads, the policy allows 0"),
    "steps": ("exact", EXACT, {"max_steps": STEPS - 1}, None, "your policy allows 13"),
    "bytes": ("exact", EXACT, {"max_bytes": 1000}, 2, "more than the policy reads"),
    "least steps": ("exact", EXACT, {"bounds__min_steps": STEPS + 1}, 4, "the policy demands 15"),
    "every": ("exact", EXACT, {"bounds__max_every": EVERY - 1}, 4, "an interval has 3 steps, the policy allows 2"),
    "learning rate": ("exact", EXACT, {"bounds__learning_rate": 0.09}, 4, "the policy allows 0.09"),
    "decay": ("plain", EXACT, {"bounds__rate_times_decay": 9e-5}, 4, "lr times weight_decay is 0.0001 from step 0"),
    "momentum": ("plain", EXACT, {"bounds__momentum": 0.8}, 4, "group 0, is 0.9, the policy allows 0.8"),
    "epochs": ("exact", EXACT, {"bounds__min_epochs": 3}, 4, "the run has 2 epochs, the policy demands 3"),
    "schedules": ("exact", EXACT, {"bounds__schedules": ("one.of.my.own",)}, 4, "follows a torch.optim.lr_sched"),
    "frozen": ("at rest", EXACT, {"bounds__frozen": 0.99}, 4, "(4 tensors, first parameter/model.0.bias) is 1, the"),
    "update": ("exact", EXACT, {"bounds__update": 1e-6}, 4, "the move of one step from step 3 to 6"),
    "loss fall": ("fallen", changed(LAX, limits__loss=1.0), {"bounds__loss_drop": 0.5}, 4, "the fall of the loss from"),
    "moved at all": ("at rest", EXACT, {"bounds__moved": True}, 4, "no step changed any parameter"),
    "moved": ("standing", ANYTHING, {"bounds__moved": True}, 4, "3 of 5 windows changed no parameter"),
    "seed": ("declared", LOOSE, {"assurance": "self-seeded"}, 4, "; --assurance seed-declared takes it"),
    "level": ("order", LOOSE, {"assurance": "seed-declared"}, 4, "; --assurance observed takes it"),
    "order": ("order", LOOSE, {"order": "derived"}, 4, "; --order permutation takes it"),
    "nonce": ("exact", EXACT, {"assurance": "verifier-seeded"}, None, "say which nonce you gave"),
    "beacon": ("beacon", EXACT, {"beacon": "00" * 32}, 1, "does not use the nonce that you gave"),
    "genesis": ("beacon", EXACT, {"beacon": BEACON.hex(), "genesis": NOBODY}, 1, "not the one that you named"),
    "start": ("exact", EXACT, {"start": NOBODY}, 4, "your policy demands sha256:000"),
    "files": ("reading", None, {"externals": ()}, 4, "the build reads the file"),
    "relative": ("near", LAX, {"limits": Limits(relative=1e-12, absolute=1.0, floor=0.0, drift=1e9)}, 7, "limit"),
    "absolute": ("near", LAX, {"limits": Limits(relative=0.5, absolute=1e-12, floor=0.0, drift=1e9)}, 7, "limit"),
    "floor": ("near", changed(LAX, limits=Limits(relative=0.0, absolute=0.0, floor=1e6, drift=1e9)),
              {"limits__floor": 0.0}, 7, "limit"),
    "reference": ("near", changed(LAX, reference=D_REF), {"limits__reference": 1e-9}, 7, "is allowed"),
    "calibration": ("near", changed(LAX, reference=D_REF), {"reference": OTHERS}, None, "calibrate this recipe"),
    "settings of the calibration": (
        "near", changed(LAX, reference=D_REF), {"reference": changed(D_REF, configuration=NOBODY)}, None,
        "with other settings",
    ),
    "loss": ("other loss", changed(LAX, limits__loss=0.1), {"limits__loss": 1e-4}, 7, "other values for the loss"),
    "drift": ("tolerance", TOLERANCE, {"limits__drift": 1e-9}, None, "a forger could drift that far unseen"),
}  # fmt: skip


@pytest.mark.parametrize("clause", CLAUSES)
def test_a_clause_stops_what_nothing_else_stops(clause):
    name, policy, stricter, step, message = CLAUSES[clause]
    if policy is None:
        external = Forger(proof(name)[0]).genesis.spec.declaration.external
        policy = changed(EXACT, externals=tuple(found.digest for found in external))
    before, after = report(name, policy), report(name, changed(policy, **stricter))
    assert before.verdict is Verdict.ACCEPT, before.reason()
    assert (after.verdict, after.caught_by) == (Verdict.REJECT if step else Verdict.INCONCLUSIVE, step), after.reason()
    assert message in after.reason()


def test_the_rule_is_the_one_of_the_genesis():
    for name, right, wrong, instead in (
        ("exact", EXACT, LAX, "a policy of rule exact"),
        ("tolerance", LAX, EXACT, "--policy tolerance"),
    ):
        assert report(name, right).verdict is Verdict.ACCEPT
        assert "the policy demands" in report(name, wrong).reason()
        assert report(name, wrong).reason().endswith(f": verify with {instead}")
        assert report(name, wrong).caught_by == 4


OWNERS = {
    clauses.inputs: ("recipes", "files"),
    clauses.assured: ("seed", "level", "order", "nonce"),
    clauses.started: ("start",),
    clauses.reference: ("calibration", "settings of the calibration"),
    clauses.profile: ("matmul", "dtypes", "threads"),
    plausible.moved: ("moved at all", "moved"),
    hyperparameters.run: ("least steps", "every", "epochs"),
    hyperparameters.optimizers: ("momentum",),
    hyperparameters.rates: ("learning rate", "decay"),
    hyperparameters.schedules: ("schedules",),
    hyperparameters.frozen: ("frozen",),
    plausible.paces: ("update",),
    plausible.losses: ("loss fall",),
    drift.beforehand: ("drift",),
}


@pytest.mark.parametrize("clause", [clause for names in OWNERS.values() for clause in names])
def test_without_its_function_a_clause_stops_nothing(clause, monkeypatch):
    function = next(function for function, names in OWNERS.items() if clause in names)
    monkeypatch.setattr(eight, "SHAPE", tuple(check for check in eight.SHAPE if check is not function))
    monkeypatch.setattr(drift, "afterwards", lambda _: iter(()))
    monkeypatch.setattr(hyperparameters, "momenta", lambda _: iter(()))
    name, policy, stricter, _, _ = CLAUSES[clause]
    path, recipe = proof(name)
    assert check(path, recipe, policy=changed(policy or EXACT, **stricter)).verdict is Verdict.ACCEPT


def test_no_function_is_without_a_clause():
    by_forgeries = {clauses.rule, hyperparameters.constant}  # which no honest run meets: here, and in test_bounds.py
    assert {*OWNERS, *by_forgeries} == {*clauses.CLAUSES, drift.beforehand}


def test_named_first_weights():
    first = Forger(proof("exact")[0]).states[0].root().weights.digest
    assert report("exact", changed(EXACT, start=first)).verdict is Verdict.ACCEPT


def test_coarse_tensors_have_no_tolerance(monkeypatch):
    for name in ("halved", "coarse momentum"):
        assert report(name, LAX).caught_by == 4
        assert "is BF16: rule tolerance refuses it" in report(name, LAX).reason()
    assert report("doubled", LAX).verdict is Verdict.ACCEPT
    monkeypatch.setattr(eight, "SHAPE", tuple(check for check in eight.SHAPE if check is not tolerance.precise))
    assert check(*proof("halved"), policy=LAX).verdict is Verdict.ACCEPT
    assert "refuses it" not in check(*proof("coarse momentum"), policy=LAX).reason()


def test_a_rate_for_every_group():
    """Rates that are not recorded cannot be bounded."""
    forger = Forger(factory().proof())
    for index, interval in enumerate(forger.intervals):
        rates = [msgspec.structs.replace(rate, values=[]) for rate in interval.learning_rates]
        forger.replace(index, learning_rates=rates)
    forger.seal(folder() / "unrated", known_key(1))
    found = check(folder() / "unrated", policy=changed(EXACT, bounds__learning_rate=1.0))
    assert (found.caught_by, "0 learning rates are recorded for 1 parameter" in found.reason()) == (4, True)
    assert check(folder() / "unrated").caught_by == 7


# -- no clause lets anything in -----------------------------------------------------------------------------------


def lower(value, *choices):
    """One of the choices that is a tighter upper bound than ``value``."""
    return st.sampled_from([choice for choice in choices if value is None or choice <= value] or [value])


def higher(value, *choices):
    return st.sampled_from([choice for choice in choices if choice >= value] or [value])


def fewer(value, *choices):
    """A list that allows less; an empty one allows everything."""
    return st.sampled_from([(one,) for one in (value or choices)])


KEY = known_key(1).fingerprint
CONSTANTS = ("any", "buffers", "none")
LAMBDA = "torch.optim.lr_scheduler.LambdaLR"
STRICTER = {
    "keys": lambda p: fewer(p.keys, KEY, NOBODY),
    "recipes": lambda p: fewer(p.recipes, Forger(proof("exact")[0]).genesis.recipe.digest, NOBODY),
    "matmul": lambda p: fewer(p.matmul, "highest", "high"),
    "dtypes": lambda p: fewer(p.dtypes, "F32", "F64"),
    "externals": lambda p: st.just(()),
    "max_threads": lambda p: lower(p.max_threads, 0, 1, 2),
    "max_steps": lambda p: lower(p.max_steps, 1, 6, STEPS),
    "max_bytes": lambda p: lower(p.max_bytes, 1000, 10**6),
    "bounds__learning_rate": lambda p: lower(p.bounds.learning_rate, 0.0, 0.09, 0.2),
    "bounds__rate_times_decay": lambda p: lower(p.bounds.rate_times_decay, 0.0, 0.1),
    "bounds__momentum": lambda p: lower(p.bounds.momentum, 0.5, 0.95),
    "bounds__min_steps": lambda p: higher(p.bounds.min_steps, 5, STEPS, 100),
    "bounds__max_every": lambda p: lower(p.bounds.max_every, 2, 3, 10),
    "bounds__moved": lambda p: st.just(True),
    "bounds__least_rate": lambda p: higher(p.bounds.least_rate or 0.0, 1e-8, 0.09, 0.2),
    "bounds__multiplier": lambda p: lower(p.bounds.multiplier, 0.5, 1.0),
    "bounds__schedules": lambda p: fewer(p.bounds.schedules, LAMBDA, "by hand"),
    "bounds__scheduled": lambda p: st.just(True),
    "bounds__reversals": lambda p: lower(p.bounds.reversals, 0.0, 0.1),
    "bounds__eps": lambda p: lower(p.bounds.eps, 0.0, 0.1),
    "bounds__frozen": lambda p: lower(p.bounds.frozen, 0.0, 0.9),
    "bounds__min_epochs": lambda p: higher(p.bounds.min_epochs, 2, 3),
    "bounds__skipped": lambda p: lower(p.bounds.skipped, 0.0, 0.1),
    "bounds__progress": lambda p: higher(p.bounds.progress or 0.0, 1e-3, 0.5),
    "bounds__pace": lambda p: lower(p.bounds.pace, 0.0, 1.0, 100.0),
    "bounds__update": lambda p: lower(p.bounds.update, 0.0, 0.1, 1.0),
    "bounds__start_loss": lambda p: higher(p.bounds.start_loss or 0.0, 0.5, 5.0),
    "bounds__loss_drop": lambda p: lower(p.bounds.loss_drop, 0.0, 0.5),
    "bounds__clip_norm": lambda p: higher(p.bounds.clip_norm or 0.0, 0.01),
    "bounds__clip_value": lambda p: higher(p.bounds.clip_value or 0.0, 0.01),
    "bounds__dropout": lambda p: lower(p.bounds.dropout, 0.0, 0.05, 0.5),
    "bounds__label_smoothing": lambda p: lower(p.bounds.label_smoothing, 0.0, 0.5),
    "bounds__zero_weights": lambda p: lower(p.bounds.zero_weights, 0.0, 0.5),
    "bounds__norm_momentum": lambda p: lower(p.bounds.norm_momentum, 0.01, 0.5),
    "bounds__gradient": lambda p: higher(p.bounds.gradient or 0.0, 1e-9, 100.0),
    "challenge__strategy": lambda p: st.just("all"),
    "challenge__top": lambda p: higher(p.challenge.top, 1, 3, 9),
    "challenge__uniform": lambda p: higher(p.challenge.uniform, 1, 3, 9),
    "challenge__weighted": lambda p: higher(p.challenge.weighted, 1, 3, 9),
    "challenge__all_up_to": lambda p: higher(p.challenge.all_up_to, 5, 9),
    "challenge__screened": lambda p: higher(p.challenge.screened, 1, 3, 9),
    "assurance": lambda p: st.sampled_from(LEVELS[LEVELS.index(p.assurance) :]),
    "order": lambda p: st.just("derived"),
    "constants": lambda p: st.sampled_from(CONSTANTS[CONSTANTS.index(p.constants) :]),
    "level": lambda p: higher(p.level, 0.05, 0.5),  # a larger level rejects more
    "beacon": lambda p: st.just(p.beacon) if p.beacon else st.sampled_from(["00" * 32, BEACON.hex()]),
    "start": lambda p: st.just(p.start or NOBODY),
}
OF_LIMITS = {
    "limits__relative": lambda p: lower(p.limits.relative, 1e-12, 1e-4, 1e-2),
    "limits__absolute": lambda p: lower(p.limits.absolute, 1e-12, 1e-4, 1e-2),
    "limits__floor": lambda p: lower(p.limits.floor, 0.0, 4.0),
    "limits__loss": lambda p: lower(p.limits.loss, 0.0, 1e-3),
    "limits__drift": lambda p: lower(p.limits.drift, 1e-9, 0.01, 1.0),
    "limits__refute": lambda p: lower(p.limits.refute, 0.0, 0.1),  # refutes more; what it leaves undecided never passes
    "limits__reference": lambda p: lower(p.limits.reference, 1e-9, 1.0),
}


def test_every_bound_is_tightened():
    assert {f"bounds__{name}" for name in Bounds.__struct_fields__} <= set(STRICTER)


@st.composite
def pairs(draw):
    """A policy, and a stricter one: each clause by itself, or several."""
    tolerant = draw(st.booleans())
    policy = changed(LAX if tolerant else LOOSE, reference=D_REF)
    strategy = draw(st.sampled_from(["mix", "uniform", "top-q", "size-weighted"]))
    top, uniform, weighted = (draw(st.integers(0, most)) for most in (1, 2, 2))
    few = Challenge(strategy=strategy, top=top, uniform=uniform, weighted=weighted, all_up_to=0, screened=0)
    policy = changed(policy, challenge=few if draw(st.booleans()) else policy.challenge)
    fields = {**STRICTER, **(OF_LIMITS if tolerant else {})}
    return policy, *(
        draw(st.lists(st.sampled_from(sorted(fields)), max_size=n, min_size=m)) for m, n in ((0, 3), (1, 3))
    )


def tightened(draw, policy, names):
    for name in names:
        policy = changed(policy, **{name: draw({**STRICTER, **OF_LIMITS}[name](policy))})
    return policy


HONEST = ("exact", "tolerance", "near", "sparse", "declared", "order", "beacon", "plain", "at rest")
FORGED = ("edited-checkpoint", "swapped-buffers", "later-momentum", "flipped-labels", "other loss")


@settings(max_examples=150, deadline=None)
@given(st.data())
def test_a_further_clause_never_accepts_what_was_rejected(data):
    policy, first, further = data.draw(pairs())
    policy = tightened(data.draw, policy, first)
    name = data.draw(st.sampled_from(HONEST + FORGED))
    before = report(name, policy).verdict
    after = report(name, tightened(data.draw, policy, further)).verdict
    assert (before, after) != (Verdict.REJECT, Verdict.ACCEPT)


@pytest.mark.parametrize(
    ("name", "policy", "stricter"),
    [
        ("tolerance", LAX, {"limits": TOLERANCE.limits}),
        ("tolerance", changed(LAX, limits__drift=0.01), {"limits": TOLERANCE.limits}),
        ("beacon", changed(EXACT, assurance="verifier-seeded"), {"beacon": BEACON.hex(), "genesis": None}),
        ("exact", changed(EXACT, challenge=Challenge(strategy="uniform", uniform=0)), {"challenge": EXACT.challenge}),
    ],
    ids=["limits", "limits within which anything could drift", "the nonce that was asked for", "more draws"],
)
def test_what_a_stricter_policy_accepts_was_never_rejected(name, policy, stricter):
    """Where a stricter policy shows more, the looser one had only not been able to say."""
    if stricter.get("genesis", 1) is None:
        stricter = {**stricter, "genesis": digest_of(name)}
    assert report(name, changed(policy, **stricter)).verdict is Verdict.ACCEPT
    assert report(name, policy).verdict is not Verdict.REJECT


@pytest.mark.parametrize("name", FORGED)
def test_forgeries_of_the_property_are_rejected(name):
    assert report(name, LAX if name == "other loss" else LOOSE).verdict is Verdict.REJECT
