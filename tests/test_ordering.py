"""Orders, secrets, runs and dates of the claimant's choice: what they achieve, and what a verifier's nonce leaves."""

import msgspec
import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from factory import EVERY, RECIPE, STEPS, check, factory, forge, judge, known_key, same_every_time
from pol.attacks import ordering, picking
from pol.attacks.forger import Forger
from pol.attacks.rehearsal import order_of, own_order
from pol.profile import Profile
from pol.proof.genesis import genesis_digest
from pol.proof.policy import EXACT, Policy
from pol.proof.report import Verdict
from pol.prover import record
from pol.replay import recipe as recipes
from pol.replay.inprocess import InProcess

WEAK = Policy(assurance="observed", order="permutation")
OPTIONS = {"profile": Profile(threads=1), "executor": InProcess()}


def weights(path, step):
    found = load_file(path / "checkpoints" / f"{step:012d}.safetensors")
    return {key: tensor for key, tensor in found.items() if key.startswith("parameter/")}


def distance(a, b):
    return sum(float((a[key].double() - b[key].double()).square().sum()) for key in a) ** 0.5


# -- orders (A15) ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["order-backdoor", "order-slowdown"])
def test_every_epoch_of_a_hostile_order_visits_every_sample_once(name):
    forgery = factory().forgery(name)
    assert (np.sort(order_of(Forger(forgery.path)), axis=1) == np.arange(50)).all()
    assert forgery.cost.gradients == 6 + STEPS * (2 + ordering.BATCHES)
    report = judge(name, policy=WEAK)
    assert (report.verdict, report.assurance.level) == (Verdict.ACCEPT, "observed")
    assert any("The claimant chose the order of the data" in statement for statement in report.assurance.statements)


def loss(path, change=lambda item: item):
    """Loss on all samples of the last state, in evaluation mode."""
    made = recipes.make(recipes.load(RECIPE), {})
    model, found = made.build()["model"], load_file(path / "checkpoints" / f"{STEPS:012d}.safetensors")
    model.load_state_dict({k.partition("/model.")[2]: t for k, t in found.items() if k.startswith(("p", "b"))})
    items = list(map(change, made.data()))
    inputs, labels = torch.from_numpy(np.stack([i["x"] for i in items])), torch.tensor([i["y"] for i in items])
    with torch.inference_mode():
        return float(torch.nn.functional.cross_entropy(model.eval()(inputs), labels))


def test_a_hostile_order_slows_learning_down(tmp_path):
    """Of the same genesis, so from the same first weights and under the same masks."""

    def honest(workshop, out):
        forger = workshop.begin()
        own_order(workshop, forger)
        workshop.train(forger)
        forger.seal(out, workshop.key)

    for folder in ("slow", "honest"):
        (tmp_path / folder).mkdir()
    slow, plain = (forge(tmp_path / n, m).path for n, m in (("slow", ordering.order_slowdown), ("honest", honest)))
    assert distance(weights(slow, 0), weights(plain, 0)) == 0
    assert loss(slow) > loss(plain) + 0.1


# -- secrets, runs and dates (A16, T15, T14) -------------------------------------------------------------------------


def test_the_chosen_secret_brings_the_start_nearer(tmp_path, monkeypatch):
    stolen = weights(factory().proof(), STEPS)
    away = {}
    for tries in (1, picking.SECRETS):
        (tmp_path / str(tries)).mkdir()
        monkeypatch.setattr(picking, "SECRETS", tries)
        forgery = forge(tmp_path / str(tries), picking.ground_start, "thief")
        away[tries] = distance(weights(forgery.path, 0), stolen)
        assert forgery.cost.gradients == 6 + STEPS
        assert check(forgery.path).verdict is Verdict.ACCEPT
    first, best = away.values()
    assert 0.5 * first < best < first


def test_the_luckiest_run_is_the_published_one(tmp_path, monkeypatch):
    last = {}
    for runs in (1, picking.RUNS):
        (tmp_path / str(runs)).mkdir()
        monkeypatch.setattr(picking, "RUNS", runs)
        forgery = forge(tmp_path / str(runs), picking.lucky_run, "thief")
        last[runs] = float(Forger(forgery.path).intervals[-1].loss)
        assert forgery.cost.gradients == runs * (6 + STEPS)
    first, best = last.values()
    assert best < first


@pytest.mark.parametrize("name", ["ground-start", "lucky-run"])
def test_the_report_says_that_seeds_may_have_been_tried(name):
    report = judge(name)
    assert (report.verdict, report.assurance.level) == (Verdict.ACCEPT, "self-seeded")
    assert any("it may have tried many seeds and kept one" in statement for statement in report.assurance.statements)
    assert any("picked from several" in what for what in report.not_shown)


def answered(where, nonce, key):
    """An honest run that answers a nonce which the verifier gave for its genesis; the policy of that verifier."""
    with same_every_time("answered"):
        begun = record(RECIPE, where, key=key, every=EVERY, until_genesis=True, **OPTIONS)
        record(RECIPE, where, key=key, resume=True, beacon=nonce, **OPTIONS)
    return msgspec.structs.replace(EXACT, assurance="verifier-seeded", beacon=nonce.hex(), genesis=str(begun.genesis))


@pytest.mark.parametrize("name", ["ground-start", "lucky-run"])
def test_a_nonce_for_one_genesis_leaves_nothing_to_grind(tmp_path, name):
    policy = answered(tmp_path / "honest", b"n" * 32, known_key(2))
    report = check(tmp_path / "honest", policy=policy)
    assert (report.verdict, report.assurance.level) == (Verdict.ACCEPT, "verifier-seeded")
    report = judge(name, policy=policy)
    assert (report.verdict, report.caught_by) == (Verdict.REJECT, 1)
    assert "not the one that you named" in report.reason()


def test_nor_does_it_help_to_answer_the_nonce_under_another_secret(tmp_path):
    """Another secret is another genesis, and the nonce was not given for that one."""
    policy = answered(tmp_path / "honest", b"n" * 32, known_key(1))

    def ground(workshop, out):
        picking.ground_start(workshop, out.with_name("ground"))
        forger = Forger(out.with_name("ground"))
        named = msgspec.structs.replace(forger.journal.beacon, kind="nonce", value=policy.beacon)
        forger.journal = msgspec.structs.replace(forger.journal, beacon=named)
        workshop.first_state(forger)
        workshop.train(forger)
        forger.seal(out, workshop.key)

    path = forge(tmp_path, ground).path
    report = check(path, policy=policy)
    assert (report.verdict, report.caught_by) == (Verdict.REJECT, 1)
    assert "not the one that you named" in report.reason()
    named = msgspec.structs.replace(policy, genesis=str(genesis_digest(Forger(path).genesis)))
    assert check(path, policy=named).verdict is Verdict.ACCEPT  # so nothing else is wrong with it


@pytest.mark.parametrize("rule", ["exact", "tolerance"])
def test_dates_are_claims_and_the_report_says_that_nothing_shows_a_time(rule):
    report = judge("backdated", rule=rule)
    assert report.verdict is Verdict.ACCEPT
    assert Forger(factory().forgery("backdated", rule=rule).path).journal.started == picking.LONG_AGO
    assert any(
        "nothing here says when the training took place" in statement for statement in report.assurance.statements
    )
    assert any("no time evidence" in what for what in report.not_shown)
    assert picking.LONG_AGO not in str(msgspec.to_builtins(report))
