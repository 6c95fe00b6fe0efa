"""The adaptive forger does what it predicts: under each policy it is accepted as often as it says, and no oftener."""

import functools
import math
import shutil
import tempfile
from pathlib import Path

import msgspec
import pytest
import torch

from factory import PLAIN, RECIPE, TOLERANCE, check, known_key, same_every_time
from pol import policies
from pol.attacks import adversary, landing, placing
from pol.attacks.foresight import foreseen, looked_over
from pol.attacks.forger import Forger
from pol.attacks.planning import claim
from pol.attacks.registry import REGISTRY
from pol.attacks.workshop import Workshop
from pol.errors import UsageError
from pol.profile import Profile
from pol.proof.challenge import draw, spans
from pol.proof.plan import plan as planned
from pol.proof.policy import EXACT, Bounds, Challenge, Limits, Paper, Policy
from pol.proof.report import Verdict
from pol.proof.screens import suspects
from pol.prover import record
from pol.replay.inprocess import InProcess
from pol.replay.state import State
from test_plan import assert_agrees, nonce

FULL = policies.load("exact-full")
EPOCHS, STEPS = 60, 420
NONCES = 1000


def alone(**changes):
    """A policy that challenges in one way only."""
    return Policy(challenge=Challenge(**changes))


def original(**changes):
    return Policy(name="paper-2021", procedure="paper-2021", paper=Paper(**changes))


def relative(share):
    """Limits of which only the relative one limits anything, and no bounds (attack study, section 0)."""
    return Policy(rule="tolerance", limits=Limits(relative=share, absolute=1e300, drift=1e300))


@functools.cache
def target(recipe=PLAIN):
    """The model to steal."""
    out = Path(tempfile.mkdtemp(prefix="pol-adversary-")) / "proof"
    settings = {"num_epochs": EPOCHS} if recipe == PLAIN else {}
    with same_every_time("target"):
        record(recipe, out, key=known_key(1), every=3, profile=Profile(threads=1), executor=InProcess(),
               settings=settings)  # fmt: skip
    return out


def workshop(policy, budget, recipe=PLAIN):
    folder = Path(tempfile.mkdtemp(prefix="pol-adversary-"))
    return Workshop(target(recipe), known_key(2), recipe, folder, InProcess(), policy, budget)


MADE = {}


def forged(policy, budget=0.5, recipe=PLAIN):
    """The forgery, and the plan that it follows."""
    key = str(policy), budget, recipe
    if key not in MADE:
        out = Path(tempfile.mkdtemp(prefix="pol-adversary-")) / "out"
        with same_every_time("adversary"):
            found = REGISTRY["adaptive"].forge(
                target(recipe), out, known_key(2), recipe, InProcess(), policy=policy, budget=budget
            )
        MADE[key] = found, adversary.plans(workshop(policy, budget, recipe))[0]
    return MADE[key]


def weights(state):
    return {key: tensor for key, tensor in state.tensors.items() if key.startswith("parameter/")}


def is_stolen(path, recipe=PLAIN):
    """Whether a proof ends in the weights of the target, bit for bit."""
    last, stolen = Forger(path), Forger(target(recipe))
    last, stolen = (weights(proof.states[proof.steps]) for proof in (last, stolen))
    return all(torch.equal(last[key].view(torch.int32), tensor.view(torch.int32)) for key, tensor in stolen.items())


# -- rule exact -----------------------------------------------------------------------------------------------------


def failing(policy, budget=0.5):
    """The intervals that a replay of every one refutes."""
    report = check(forged(policy, budget)[0].path, PLAIN, policy=FULL)
    assert report.verdict is Verdict.REJECT
    return [result.index for result in report.intervals if result.status == "failed"]


SLOW = pytest.mark.slow

UNSCREENED = msgspec.structs.replace(EXACT, challenge=Challenge(screened=0))
SAMPLED = {
    "the default": (EXACT, "turning", 0.4),
    "the default without screens": (UNSCREENED, "turning", 0.4),
    "uniform draws": (alone(strategy="uniform", uniform=60), "turning", 0.2),
    "size-weighted draws": (alone(strategy="size-weighted", weighted=30), "turning", 0.1),
}


@pytest.mark.parametrize("name", [pytest.param(n, marks=[SLOW] * (n != "the default")) for n in SAMPLED])
def test_it_is_accepted_as_often_as_it_predicts(name):
    """Every interval is replayed once, then a thousand nonces are looked up."""
    policy, kind, least = SAMPLED[name]
    forgery, plan = forged(policy)
    assert (plan.name, plan.ends) == (kind, True)
    assert is_stolen(forgery.path)
    assert list(plan.forged) == failing(policy) == [plan.intervals - 3]
    expected = foreseen(forgery.path, policy, plan.forged)
    assert expected == pytest.approx(plan.probability, abs=0.01)
    report = check(forgery.path, PLAIN, policy=policy)
    case = looked_over(forgery.path, policy)
    found = suspects(case.screens)
    passed = 0
    for number in range(NONCES):
        drawn = draw(policy.challenge, report.attestation, nonce(number), case.windows, [], found).all()
        passed += not any(a <= f <= b for a, b in spans(case.windows, drawn, each=False) for f in plan.forged)
    assert_agrees(passed / NONCES, expected, NONCES)
    assert 1 - expected > least


@pytest.mark.parametrize("policy", [EXACT, UNSCREENED], ids=["the default", "without screens"])
def test_a_plan_of_the_policy_states_no_more_than_that(policy):
    """Half of a training buys no ACCEPT but by chance, at a rate that a verifier reads before it asks for a proof."""
    plan = forged(policy)[1]
    stated = planned(EXACT, plan.intervals, 1, 1).detections[0]
    assert stated.what == "one single interval"
    assert stated.probability < 1 - plan.probability < 2 * stated.probability


def test_screens_meet_a_jump_that_is_unusual_and_not_one_that_is_shaped_for_them():
    """A jump that is small beside the moves before it is unusual. One that is not so small is as hidden from sizes."""
    for policy, met in ((UNSCREENED, True), (EXACT, False)):
        forgery, plan = forged(policy)
        case = looked_over(forgery.path, EXACT)
        (jump,) = plan.forged
        assert (jump in suspects(case.screens)[: EXACT.challenge.screened]) == met
        assert (case.screens[0].name, case.screens[0].status) == ("norms", "unusual" if met else "quiet")
    for number in range(5):
        report = check(forged(UNSCREENED)[0].path, PLAIN, policy=EXACT, nonce=nonce(number))
        assert (report.verdict, report.caught_by) == (Verdict.REJECT, 7)


def test_a_claimed_loss_is_one_with_which_no_screen_names_the_jump():
    forgery, plan = forged(EXACT)
    proof = Forger(forgery.path)
    (jump,) = plan.forged
    proof.replace(jump, loss="1000.0")
    out = Path(tempfile.mkdtemp(prefix="pol-adversary-")) / "out"
    proof.seal(out, known_key(2))
    assert foreseen(out, EXACT, plan.forged) == 0.0
    shop = workshop(EXACT, 0.5)
    claim(EXACT, shop, proof, plan.forged, jump, plan.probability)
    shutil.rmtree(out)
    proof.seal(out, known_key(2))
    assert foreseen(out, EXACT, plan.forged) == pytest.approx(plan.probability, abs=0.01)
    assert shop.gradients == 0


@SLOW
def test_the_verifier_itself_decides_as_the_draws_say():
    policy = alone(strategy="uniform", uniform=60)
    forgery, plan = forged(policy)
    caught = 0
    for number in range(12):
        report = check(forgery.path, PLAIN, policy=policy, nonce=nonce(number))
        met = bool(set(report.draws.all()) & set(plan.forged))
        assert (report.verdict is Verdict.REJECT) == met, report.reason()
        assert (report.verdict is Verdict.ACCEPT) != met
        caught += met
    assert 0 < caught < 12


def test_the_largest_alone_are_never_the_forged_ones():
    """A19 against the challenge: every honest step moves the weights further than the jump does."""
    policy = alone(strategy="top-q", top=3)
    forgery, plan = forged(policy)
    assert (plan.name, plan.probability) == ("turning", 1.0)
    assert check(forgery.path, PLAIN, policy=policy).verdict is Verdict.ACCEPT
    assert is_stolen(forgery.path)


def test_weights_that_stand_still_are_as_good_where_nobody_looks_at_sizes():
    policy = alone(strategy="uniform", uniform=20)
    ways = {plan.name: plan for plan in adversary.plans(workshop(policy, 0.5))}
    assert ways["still"].probability == ways["turning"].probability > 0.85
    assert {plan.probability for plan in adversary.plans(workshop(EXACT, 0.5)) if plan.name == "still"} == {0.0}


@pytest.mark.parametrize(
    "budget", [pytest.param(0.05, marks=SLOW), 0.2, pytest.param(0.5, marks=SLOW), pytest.param(1.0, marks=SLOW)]
)
def test_nothing_passes_when_all_is_replayed(budget):
    forgery, plan = forged(FULL, budget)
    assert plan.probability == 0.0
    report = check(forgery.path, PLAIN, policy=FULL)
    assert (report.verdict, report.caught_by) == (Verdict.REJECT, 7)


def test_a_bound_takes_the_settings_away():
    bounds = Bounds(rate_times_decay=0.1, moved=True)
    found = adversary.plans(workshop(Policy(bounds=bounds), 0.5))
    assert [(plan.name, plan.probability) for plan in found] == [("own run", 0.0)]


def test_the_shorter_run_is_not_taken_where_it_is_too_short():
    found = adversary.plans(workshop(Policy(bounds=Bounds(min_epochs=EPOCHS)), 0.5))
    assert {plan.intervals for plan in found if plan.name == "turning"} == {STEPS}
    assert all(plan.probability < 1e-6 for plan in found)  # half of them are forged, and a hundred are drawn


# -- placement ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("intervals", "paid"), [(20, 19), (200, 199), (200, 120), (1000, 300), (5, 1)])
def test_what_cannot_be_paid_for_is_forged_and_what_is_certain_is_not(intervals, paid):
    forged = placing.placement(intervals, paid, 1)
    assert len(forged) == intervals - paid
    assert intervals - 3 in forged
    if paid > 2:
        assert not set(forged) & {0, intervals - 2, intervals - 1}


def test_top_alone_is_passed_with_a_third_of_the_steps():
    """Blindfold: in each stratum the last steps are honest, and the largest."""
    policy = Policy(challenge=Challenge(strategy="top-q", top=1), bounds=Bounds(min_epochs=EPOCHS))
    forgery, plan = forged(policy, 0.35)
    assert (plan.probability, plan.intervals) == (1.0, STEPS)
    assert len(plan.forged) > 0.6 * STEPS
    assert check(forgery.path, PLAIN, policy=policy).verdict is Verdict.ACCEPT
    assert is_stolen(forgery.path)


# -- the verification of 2021 ---------------------------------------------------------------------------------------

BROKEN = {
    "the code's deltas": ({}, "pieces"),
    "all replayed": ({"top": 0}, "pieces"),
    "a tenth": ({"delta": {"l1": 100.0, "l2": 1.0, "linf": 0.01, "cos": 0.001}, "top": 4}, "pieces"),
    "no delta to speak of": ({"delta": {"linf": 1e-9}}, "unseen end"),
    "none, and all replayed": ({"delta": {"linf": 1e-30}, "top": 0}, "no number"),
}


@pytest.mark.parametrize("name", [pytest.param(n, marks=[SLOW] * (BROKEN[n][1] == "pieces")) for n in BROKEN])
def test_the_verification_of_2021_is_passed_with_any_constants(name):
    changes, way = BROKEN[name]
    policy = original(**changes)
    forgery, plan = forged(policy, 0.05)
    assert (plan.name, forgery.cost.gradients) == (way, 6)  # the control run of a genesis
    report = check(forgery.path, PLAIN, policy=policy)
    assert report.verdict is Verdict.ACCEPT, report.reason()
    assert is_stolen(forgery.path)
    assert check(forgery.path, PLAIN, policy=FULL).verdict is Verdict.REJECT


def test_drift_uses_the_deltas_of_2021_whole():
    """Below an absolute delta of each interval it comes as near as steps of a constant rate let it stay (A18)."""
    stolen = weights(Forger(target()).states[STEPS])
    way = distance(weights(Forger(target()).states[0]), stolen)
    policy, ends = original(delta={"l2": 0.01 * way, "linf": way}, top=0), []
    for known in (policy, None):  # which means: that of the preset tolerance
        out = Path(tempfile.mkdtemp(prefix="pol-adversary-")) / "out"
        with same_every_time("adversary"):
            REGISTRY["drifting"].forge(target(), out, known_key(2), PLAIN, InProcess(), policy=known)
        report = check(out, PLAIN, policy=policy)
        assert report.verdict is Verdict.ACCEPT, report.reason()
        ends.append(distance(weights(Forger(out).states[STEPS]), stolen) / way)
    assert ends[0] < 0.5 * ends[1]


def distance(a, b):
    return math.hypot(*(float((a[key].double() - b[key].double()).norm()) for key in b))


# -- tolerance --------------------------------------------------------------------------------------------------------


def test_a_relative_limit_alone_is_passed_all_the_way():
    policy = relative(1e-2)
    forgery, plan = forged(policy)
    assert (plan.name, plan.probability) == ("turned", 1.0)
    assert check(forgery.path, PLAIN, policy=policy).verdict is Verdict.ACCEPT
    assert is_stolen(forgery.path)


def test_a_schedule_leaves_nothing_to_turn_over(tmp_path):
    """Steps of a falling rate shrink weights to nothing, so this forger ended at a model of zeros, which passed."""
    digits = "pol.recipes.digits:DigitsCNN"
    record(digits, tmp_path / "proof", key=known_key(1), every=1, profile=Profile(threads=1), executor=InProcess(),
           settings={"num_epochs": 2, "batch_size": 750, "width": 1})  # fmt: skip
    shop = Workshop(tmp_path / "proof", known_key(2), digits, tmp_path, InProcess(), relative(1e-2), 1000.0)
    assert "turned" not in {plan.name for plan in adversary.plans(shop)}
    with pytest.raises(UsageError, match="this attack needs plain SGD without a schedule"):
        REGISTRY["huge-decay"].make(shop, tmp_path / "out")
    assert "turned" in {plan.name for plan in adversary.plans(workshop(relative(1e-2), 0.5))}


def test_tolerance_lets_it_come_nearer_by_less_than_the_drift_budget():
    policy = TOLERANCE
    forgery, plan = forged(policy)
    assert (plan.name, plan.ends) == ("drawn", False)
    report = check(forgery.path, PLAIN, policy=policy)
    assert report.verdict is Verdict.ACCEPT, report.reason()
    assert not is_stolen(forgery.path)
    assert report.drift.bound <= policy.limits.drift * report.drift.distance
    proof, stolen = Forger(forgery.path), weights(Forger(target()).states[STEPS])
    honest = Forger(forgery.path)
    with same_every_time("adversary"):
        shop = workshop(policy, 1.0)
        shop.train(honest)

    def apart(run):
        return distance(weights(run.states[run.steps]), stolen)

    gain = apart(honest) - apart(proof)
    assert 0 < gain < policy.limits.drift * report.drift.distance


def test_what_ends_at_the_stolen_weights_is_not_accepted_under_tolerance():
    """The same turns, with limits that would allow them and a budget that does not."""
    policy = Policy(rule="tolerance", limits=Limits(relative=1e-2, absolute=1e300, drift=0.01))
    ways = {plan.name: plan for plan in adversary.plans(workshop(policy, 0.5))}
    assert ways["turned"].probability == 0.0
    out = Path(tempfile.mkdtemp(prefix="pol-adversary-")) / "out"
    shop = workshop(policy, 0.5)
    with same_every_time("adversary"):
        ways["turned"].make(shop, out)
    report = check(out, PLAIN, policy=policy)
    assert is_stolen(out)
    assert report.verdict is Verdict.INCONCLUSIVE
    assert "a forger could drift that far unseen" in report.reason()


# -- budget -----------------------------------------------------------------------------------------------------------

POLICIES = [EXACT, FULL, TOLERANCE, relative(1e-2), original(), alone(strategy="uniform", uniform=60)]


@pytest.mark.parametrize("policy", POLICIES, ids=str)
@pytest.mark.parametrize(
    ("recipe", "budget"),
    [pytest.param(PLAIN, 0.05, marks=SLOW), pytest.param(PLAIN, 0.5, marks=SLOW), (RECIPE, 0.6), (RECIPE, 1.0)],
)
def test_it_never_spends_more_than_it_has(policy, recipe, budget):
    forgery, plan = forged(policy, budget, recipe)
    steps = Forger(target(recipe)).steps
    assert forgery.cost.gradients <= plan.gradients <= budget * steps


def test_without_gradients_for_a_genesis_there_is_no_plan():
    with pytest.raises(UsageError, match="a genesis alone takes a control run"):
        adversary.adaptive(workshop(EXACT, 0.01), Path("nowhere"))


def test_an_unknown_policy_is_taken_for_the_default():
    assert adversary.plans(workshop(None, 0.5)) == adversary.plans(workshop(EXACT, 0.5))


# -- landing ----------------------------------------------------------------------------------------------------------


def test_running_statistics_land_a_rounding_off_at_most():
    """The toy recipe has buffers; at a rate of 0 its weights stand still."""
    shop = workshop(EXACT, 100.0, RECIPE)
    with same_every_time("landing"):
        forger = shop.begin(settings={"lr": 0.0}, every=1)
    shop.train(forger)
    aim, start = shop.stolen(), forger.steps - 2
    forger.states[start] = State(
        {k: aim.tensors[k] if k.startswith(landing.MODEL) else t for k, t in forger.states[start].tensors.items()}
    )
    before = shop.gradients
    landing.land(shop, forger, start, aim, placing.ROUNDS)
    assert shop.gradients - before <= 2 * placing.ROUNDS
    last = forger.states[forger.steps].tensors
    for key in (key for key in aim.tensors if key.startswith(landing.MODEL)):
        if "running" in key:
            torch.testing.assert_close(last[key], aim.tensors[key], rtol=0, atol=2.0**-24)
            assert (last[key] == aim.tensors[key]).float().mean() > 0.5
        else:
            assert torch.equal(last[key], aim.tensors[key])


def test_where_too_few_attempts_are_left_it_says_so():
    shop = workshop(EXACT, 100.0, RECIPE)
    forger = shop.begin(settings={"lr": 0.0}, every=1)
    shop.train(forger)
    assert not landing.land(shop, forger, forger.steps - 2, shop.stolen(), 2)
