"""The command line: exit codes, one JSON object, errors that say what to do, and recordings that go on.

Training happens in this process, except in the tests marked slow, which run the real thing.
"""

import base64
import json
import os
import re
import shlex
import shutil
import signal
import stat
import subprocess
import sys
import time
from pathlib import Path

import jsonschema
import msgspec
import numpy as np
import pytest
import typer

import pol
from factory import EVERY, PLAIN, RECIPE, STEPS, factory
from pol import canonical, policies, store
from pol.cli import app, main, output
from pol.cli import progress as progress_module
from pol.keys import SigningKey
from pol.messages import Stepped
from pol.proof.policy import policy_digest
from pol.render.demo import Outcome
from pol.replay.inprocess import InProcess

ROOT = Path(__file__).parents[1]
SCHEMA = json.loads((ROOT / "docs" / "report.schema.json").read_text())
GOOD = Path(__file__).parent / "vectors" / "good-toy"
COMMANDS = typer.main.get_command(app.app).commands


class Here(InProcess):
    """A training process that is this one."""

    def __init__(self, profile=None, *, isolated=False):
        del profile, isolated

    def close(self):
        """Nothing to end."""


@pytest.fixture(autouse=True)
def surroundings(monkeypatch, tmp_path):
    """A folder and a configuration of its own, and no processes."""
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    monkeypatch.setenv("COLUMNS", "200")
    monkeypatch.setattr("pol.prover.LocalProcess", Here)
    monkeypatch.setattr("pol.executors.local.LocalProcess", Here)
    (tmp_path / "work").mkdir()
    monkeypatch.chdir(tmp_path / "work")


@pytest.fixture
def call(capsys):
    """Run a command line: (exit code, standard output, standard error)."""

    def run(*words):
        code = main([str(word) for word in words])
        out, err = capsys.readouterr()
        return code, out, err

    return run


@pytest.fixture
def ask(call):
    """Run a command line with ``--json``: (exit code, the one object)."""

    def run(command, *words):
        code, out, _ = call(command, "--json", *words)
        assert out.endswith("}\n")
        assert out.count("\n") == 1
        return code, json.loads(out)

    return run


def accepted():
    return [factory().proof(), "--recipe", RECIPE]


# -- exit codes ---------------------------------------------------------------------------------------------------

OUTCOMES = {
    "ACCEPT": (0, accepted),
    "REJECT": (1, lambda: [factory().forgery("edited-checkpoint").path, "--recipe", RECIPE]),
    "INCONCLUSIVE": (2, lambda: [*accepted(), "--max-steps", "1"]),
}


@pytest.mark.parametrize("verdict", OUTCOMES)
def test_a_verdict_is_an_exit_code(verdict, call, ask):
    code, words = OUTCOMES[verdict]
    found, out, err = call("verify", *words())
    assert found == code
    assert out.split()[0] == verdict
    assert "Traceback" not in out + err
    found, report = ask("verify", *words())
    assert (found, report["verdict"]) == (code, verdict)
    jsonschema.Draft202012Validator(SCHEMA).validate(report)


WRONG = {
    "no such command": (["certify"], "certify"),
    "no such option": (["verify", GOOD, "--fast"], "--fast"),
    "an option without its value": (["record", RECIPE, "--out"], "--out"),
    "no argument": (["inspect"], "Missing argument"),
    "one argument too many": (["inspect", GOOD, "other"], "other"),
    "no number": (["record", RECIPE, "--out", "p", "--every", "ten"], "--every"),
    "a number out of range": (["record", RECIPE, "--out", "p", "--every", "0"], "--every"),
    "no such strategy": (["verify", GOOD, "--recipe", RECIPE, "--strategy", "some"], "some"),
    "no such proof": (["verify", "nothing", "--recipe", RECIPE], "nothing: no such proof directory"),
    "no proof": (["inspect", "."], "not a proof directory"),
    "no such recipe": (["verify", GOOD, "--recipe", "no.py:Recipe"], "no such file: no.py"),
    "no recipe": (["verify", GOOD], "a class Toy"),
    "no hexadecimal digits": (["verify", GOOD, "--recipe", RECIPE, "--nonce", "xyz"], "--nonce: expected 32 bytes"),
    "openings in a file": (
        ["verify", GOOD, "-r", RECIPE, "--openings", f"{GOOD}/log.jsonl"],
        "log.jsonl: cannot make the folder",
    ),
    "half a beacon": (["record", RECIPE, "--out", "p", "--beacon", "00" * 16], "--beacon: expected 32 bytes"),
    "no digest": (["verify", GOOD, "--recipe", RECIPE, "--allow-file", "file"], "not a digest"),
    "no such key": (["verify", GOOD, "--recipe", RECIPE, "--key", "me"], "me: cannot read the key"),
    "no name": (["record", RECIPE, "--out", "p", "--set", "0.1"], "--set 0.1: write --set name=value"),
    "a setting given twice": (["record", RECIPE, "--out", "p", "--set", "lr=1", "--set", "lr=2"], "given twice"),
    "no such setting": (["record", RECIPE, "--out", "p", "--set", "rate=1"], "rate"),
    "a beacon for no genesis": (["record", RECIPE, "--out", "p", "--genesis-only", "--beacon", "0"], "exclude"),
    "no such policy": (["verify", GOOD, "--recipe", RECIPE, "--policy", "strict"], "strict: no such policy"),
    "no such policy to show": (["policy", "strict"], "neither a file nor one of exact"),
    "weights from where": (["record", RECIPE, "--out", "p", "--start", "w"], "--start needs --start-kind"),
    "a kind of nothing": (["record", RECIPE, "--out", "p", "--start-kind", "given"], "name it"),
    "two beginnings": (
        ["record", RECIPE, "--out", "p", "--init-seed", "1", "--start", "w", "--start-kind", "given"],
        "init_seed draws the first weights, start",
    ),
    "a seed of 33 bits": (["record", RECIPE, "--out", "p", "--init-seed", str(2**32)], "--init-seed"),
    "nothing to resume": (["record", RECIPE, "--out", "p", "--resume"], "no recording to resume"),
}


@pytest.mark.parametrize("case", WRONG)
def test_wrong_usage_is_3_and_says_what(case, call, ask):
    words, message = WRONG[case]
    code, out, err = call(*words)
    assert (code, out) == (3, "")
    assert err.splitlines()[-1].startswith("error: ")
    assert message in err
    assert "Traceback" not in err
    shutil.rmtree("p", ignore_errors=True)
    code, problem = ask(*words)
    assert code == 3
    assert problem.keys() == {"error", "kind"}
    assert message in problem["error"]


def test_a_usage_error_names_the_help(call):
    assert "(see `pol record --help`)" in call("record")[2]
    assert "(see `pol --help`)" in call("certify")[2]


def test_no_command_shows_the_help(call):
    code, out, err = call()
    assert code == 3
    assert all(name in out + err for name in COMMANDS)


def test_version(call):
    assert call("--version")[:2] == (0, f"pol {pol.__version__}\n")


def test_errors_of_the_system_are_3(call, ask, tmp_path):
    closed = tmp_path / "file"
    closed.write_text("")
    assert call("keygen", closed / "key.pem")[0] == 3
    code, problem = ask("keygen", closed / "key.pem")
    assert (code, problem["kind"]) == (3, "FileExistsError")
    assert str(closed) in problem["error"]


def test_a_bug_is_3_and_its_traceback_is_for_those_who_ask(call, monkeypatch):
    def broken(path):
        raise ZeroDivisionError("by chance")

    monkeypatch.setattr(output, "read_summary", broken)
    code, out, err = call("inspect", GOOD)
    assert (code, out) == (3, "")
    assert "ZeroDivisionError: by chance" in err
    assert "POL_DEBUG=1" in err
    assert "Traceback" not in err
    monkeypatch.setenv("POL_DEBUG", "1")
    assert "Traceback" in call("inspect", GOOD)[2]


@pytest.mark.parametrize("command", ["verify", "inspect"])
def test_interrupted_is_130(command, call, ask, monkeypatch):
    def stop(*words, **options):
        raise KeyboardInterrupt

    monkeypatch.setattr("pol.verifier.verify", stop)
    monkeypatch.setattr(output, "read_summary", stop)
    words = [command, GOOD] + (["--recipe", RECIPE] if command == "verify" else [])
    assert call(*words) == (130, "", "interrupted\n")
    assert ask(*words) == (130, {"error": "interrupted", "kind": "Interrupted"})


# -- help ---------------------------------------------------------------------------------------------------------


def test_there_are_the_promised_commands():
    promised = {"attack", "bench", "calibrate", "demo", "doctor", "gc", "inspect", "keygen", "plan", "policy", "record",
                "regenerate", "verify"}  # fmt: skip
    assert set(COMMANDS) == promised
    assert set(COMMANDS["bench"].commands) == {"attacks"}


SINGLE = {(name,): command for name, command in COMMANDS.items() if name != "bench"}
SINGLE |= {("bench", name): command for name, command in COMMANDS["bench"].commands.items()}


@pytest.mark.parametrize("name", sorted(SINGLE), ids=" ".join)
def test_help_explains_every_option(name, call):
    code, out, _ = call(*name, "--help")
    assert code == 0
    parameters = SINGLE[name].params
    assert any("--json" in parameter.opts for parameter in parameters)
    text = " ".join(out.replace("│", " ").split())
    for parameter in parameters:
        assert parameter.help, parameter.name
        assert parameter.help in text, parameter.name
        for option in parameter.opts:
            assert not option.startswith("--") or option in text


# -- keygen -------------------------------------------------------------------------------------------------------


def test_keygen_makes_a_key_once(call, ask, tmp_path):
    code, made = ask("keygen", "my.pem")
    assert code == 0
    assert made == {"key": "my.pem", "public": "my.pem.pub", "fingerprint": SigningKey.load(Path("my.pem")).fingerprint}
    assert stat.S_IMODE(Path("my.pem").stat().st_mode) == 0o600
    before = Path("my.pem").read_bytes()
    code, problem = ask("keygen", "my.pem")
    assert (code, Path("my.pem").read_bytes()) == (3, before)
    assert "never overwritten" in problem["error"]
    code, out, _ = call("keygen")
    default = tmp_path / "config" / "pol" / "key.pem"
    assert (code, default.exists()) == (0, True)
    assert str(default) in out
    assert SigningKey.load(default).fingerprint in out


# -- record -------------------------------------------------------------------------------------------------------


def test_record_then_the_command_that_it_prints(call, ask, tmp_path):
    code, out, _ = call("record", RECIPE, "--out", "proof", "--every", "3", "--threads", "1", "--set", "lr=0.05")
    key = tmp_path / "config" / "pol" / "key.pem"
    assert code == 0
    assert f"{key} (made just now" in out
    assert f"{STEPS} steps in 5 intervals" in out
    assert SigningKey.load(key).fingerprint in out
    command = shlex.split(out.splitlines()[-1])
    assert command[:3] == ["pol", "verify", "proof"]
    assert ask(*command[1:])[1]["verdict"] == "ACCEPT"
    assert ask(*command[1:], "--set", "lr=0.05")[1]["verdict"] == "ACCEPT"
    assert ask(*command[1:], "--set", "lr=0.1")[1]["verdict"] == "REJECT"
    assert ask(*command[1:], "--key", f"{key}.pub", "--key", "sha256:" + "0" * 64)[1]["verdict"] == "ACCEPT"
    assert ask(*command[1:], "--key", "sha256:" + "0" * 64)[1]["caught_by"] == 1


def test_record_as_json(ask, tmp_path):
    code, made = ask("record", RECIPE, "--out", "proof", "--every", "5", "--keep", "2", "--threads", "1")
    summary, claimant = output.read_summary(Path("proof"))
    assert (code, made["key_made"], made["steps"], made["proof"]) == (0, True, STEPS, "proof")
    assert made["claimant"] == claimant
    assert made["final_loss"] == summary.final_loss == summary.losses[-1].loss
    assert made["bytes"] == sum(file.stat().st_size for file in Path("proof").rglob("*") if file.is_file())
    assert (made["genesis"], made["attestation"]) == (summary.claims.genesis, summary.attested.attestation)
    assert (summary.claims.every, summary.claims.keep) == (5, 2)
    again, other = ask("record", RECIPE, "--out", "other", "--threads", "1")
    assert (again, other["key_made"], other["claimant"]) == (0, False, claimant)
    SigningKey.generate().save(tmp_path / "own.pem")
    own = ask("record", RECIPE, "--out", "own", "--threads", "1", "--key", tmp_path / "own.pem")[1]
    assert (own["key"], own["claimant"] == claimant) == (str(tmp_path / "own.pem"), False)


def test_record_writes_the_model_and_verify_compares_it(call, ask):
    code, made = ask("record", RECIPE, "--out", "proof", "--threads", "1", "--model", "model.safetensors")
    assert (code, made["model"]) == (0, "model.safetensors")
    command = shlex.split(made["next"])
    assert command[-2:] == ["--model", "model.safetensors"]
    assert ask(*command[1:])[1]["verdict"] == "ACCEPT"
    assert ask("record", RECIPE, "--out", "other", "--threads", "1", "--model", "other.safetensors")[0] == 0
    assert ask(*command[1:-1], "other.safetensors")[1]["caught_by"] == 3
    code, problem = ask("record", RECIPE, "--out", "third", "--model", "nowhere/model.safetensors")
    assert (code, Path("third").exists()) == (3, False)
    assert "there is no folder nowhere" in problem["error"]


def test_what_is_there_is_not_written_over(ask):
    Path("full").mkdir()
    Path("full", "thesis.tex").write_text("")
    for out in ("full", "full/thesis.tex"):
        code, problem = ask("record", RECIPE, "--out", out)
        assert code == 3
        assert out in problem["error"]


def test_beacon_between_genesis_and_training(call, ask):
    code, out, _ = call("record", RECIPE, "--out", "proof", "--threads", "1", "--genesis-only", "--every", "4")
    genesis = output.read_summary(Path("proof"))[0].claims.genesis
    assert code == 0
    assert genesis in out
    printed = out.splitlines()[-1].strip()
    assert printed.endswith("--beacon <nonce from your verifier>")
    nonce = "5a" * 32
    command = shlex.split(printed.replace("<nonce from your verifier>", nonce))
    code, made = ask(*command[1:])
    assert (code, made["steps"], made["genesis"]) == (0, STEPS, genesis)
    seeded = shlex.split(made["next"])
    assert seeded[-4:] == ["--beacon", nonce, "--genesis", genesis]
    report = ask(*seeded[1:])[1]
    assert (report["verdict"], report["assurance"]["level"]) == ("ACCEPT", "verifier-seeded")
    report = ask(*seeded[1:-2])[1]
    assert (report["verdict"], report["assurance"]["level"]) == ("ACCEPT", "self-seeded")
    other = ["5b" * 32 if word == nonce else word for word in seeded]
    assert ask(*other[1:])[1]["caught_by"] == 1


SETTINGS = [
    ("0.1", 0.1),
    ("3", 3),
    ("true", True),
    ("null", None),
    ("-1e-3", -0.001),
    ("adam", "adam"),
    ('"3"', "3"),
    ("", ""),
    ("a=b", "a=b"),
    ("[1]", "[1]"),
    ("{}", "{}"),
    ("True", "True"),
    ("0x10", "0x10"),
    ("01", "01"),
    ("NaN", "NaN"),
    ("Infinity", "Infinity"),
]


@pytest.mark.parametrize(("text", "value"), SETTINGS)
def test_values_of_settings(text, value):
    found = output.settings([f"name={text}"])
    assert found == {"name": value}
    assert type(found["name"]) is type(value)


class Stopped(Here):
    """A training process in which the user presses Ctrl-C; ``at`` says after how many progress reports."""

    at = 0

    def run(self, job):
        count = 0
        if not self.at:
            raise KeyboardInterrupt
        for event in super().run(job):
            yield event
            if type(job).__name__ == "Train" and type(event).__name__ == "Recorded":
                yield Stepped(step=event.interval.stop, total=STEPS)
                count += 1
            if count == self.at:
                raise KeyboardInterrupt


@pytest.mark.parametrize(("at", "step"), [(0, 0), (1, 3), (4, 12)])
def test_interrupted_recording_goes_on(at, step, call, ask, monkeypatch):
    monkeypatch.setattr(Stopped, "at", at)
    monkeypatch.setattr("pol.prover.LocalProcess", Stopped)
    options = ["--every", "3", "--keep", "2", "--set", "lr=0.05", "--threads", "1"]
    code, out, err = call("record", RECIPE, "--out", "the proof", "--model", "m.safetensors", *options)
    assert (code, out) == (130, "")
    message = err[err.index("Interrupted") :].splitlines()
    assert message[0] == f"Interrupted at step {step}. Go on with:"
    command = shlex.split(message[1])
    assert ("--every" in command) == (at == 0)  # only what no genesis holds yet must be said again
    summary = output.read_summary(Path("the proof"))[0]
    assert (summary.claims is None, summary.attested) == (at == 0, None)
    assert call("inspect", "the proof")[0] == 0
    monkeypatch.setattr("pol.prover.LocalProcess", Here)
    code, made = ask(*command[1:])
    assert (code, made["steps"], Path("m.safetensors").exists()) == (0, STEPS, True)
    summary = output.read_summary(Path("the proof"))[0]
    assert (summary.claims.every, summary.claims.keep, summary.claims.profile.threads) == (3, 2, 1)
    assert summary.claims.configuration == {"lr": {"float": "0.05"}}
    assert ask(*shlex.split(made["next"])[1:])[1]["verdict"] == "ACCEPT"
    code, problem = ask(*command[1:])
    assert code == 3
    assert "nothing to resume" in problem["error"]


def test_what_the_genesis_fixed_cannot_change(ask, monkeypatch):
    monkeypatch.setattr(Stopped, "at", 1)
    monkeypatch.setattr("pol.prover.LocalProcess", Stopped)
    assert ask("record", RECIPE, "--out", "proof", "--threads", "1")[0] == 130
    for option in (["--every", "7"], ["--keep", "9"], ["--threads", "2"], ["--set", "lr=0.5"]):
        code, problem = ask("record", RECIPE, "--out", "proof", "--resume", *option)
        assert code == 3
        assert option[0].strip("-") in problem["error"]


# -- verify -------------------------------------------------------------------------------------------------------


def test_options_make_the_policy(ask, monkeypatch):
    seen = {}

    def verify(proof, **options):
        seen.update(options, proof=proof)
        raise pol.UsageError("enough")

    monkeypatch.setattr("pol.verifier.verify", verify)
    digests = [f"sha256:{n:064x}" for n in range(3)]
    options = {
        "--strategy": "uniform", "--uniform": "7", "--weighted": "8", "--top": "9", "--max-steps": "10",
        "--allow-constants": "any", "--beacon": "AB" * 32, "--nonce": "cd" * 32, "--model": "m.safetensors",
    }  # fmt: skip
    words = [word for pair in options.items() for word in pair]
    words += ["--key", digests[0], "--key", digests[1], "--allow-file", digests[2], "--set", "lr=2"]
    assert ask("verify", GOOD, "-r", RECIPE, *words)[1] == {"error": "enough", "kind": "UsageError"}
    challenge = pol.Challenge(strategy="uniform", uniform=7, weighted=8, top=9)
    assert seen["policy"] == pol.Policy(
        challenge=challenge, max_steps=10, constants="any", beacon="ab" * 32,
        keys=tuple(digests[:2]), externals=(digests[2],),
    )  # fmt: skip
    assert (seen["nonce"], seen["model"], seen["settings"]) == (bytes([0xCD] * 32), Path("m.safetensors"), {"lr": 2})
    assert ask("verify", GOOD, "-r", RECIPE)[0] == 3
    assert (seen["policy"], seen["nonce"], seen["model"], seen["settings"]) == (pol.EXACT, None, None, None)


def test_options_change_the_policy_that_is_named(ask, monkeypatch):
    seen = {}

    def verify(proof, **options):
        seen.update(options)
        raise pol.UsageError("enough")

    monkeypatch.setattr("pol.verifier.verify", verify)
    Path("mine.toml").write_text('base = "tolerance"\nmax_steps = 5\n[challenge]\nuniform = 3\n')
    mine = policies.load("mine.toml")
    ask("verify", GOOD, "-r", RECIPE, "--policy", "mine.toml")
    assert (seen["policy"], seen["start"], seen["openings"]) == (mine, None, None)
    Path("dir").mkdir()
    words = ["--top", "7", "--assurance", "observed", "--order", "permutation", "--start", "w.st", "--openings", "dir"]
    ask("verify", GOOD, "-r", RECIPE, "-p", "mine.toml", *words)
    assert seen["policy"] == msgspec.structs.replace(
        mine, assurance="observed", order="permutation", challenge=msgspec.structs.replace(mine.challenge, top=7)
    )
    assert (seen["start"], seen["openings"]) == (Path("w.st"), Path("dir"))


def test_a_policy_demands_its_rule(ask):
    tolerant = factory().proof(rule="tolerance")
    Path("mine.toml").write_text(f'base = "tolerance"\nbounds.max_every = {EVERY}')
    assert ask("verify", tolerant, "-r", RECIPE, "--policy", "mine.toml")[1]["verdict"] == "ACCEPT"
    assert ask("verify", tolerant, "-r", RECIPE, "--policy", "tolerance")[1]["caught_by"] == 4  # for its long intervals
    assert ask("verify", tolerant, "-r", RECIPE)[1]["caught_by"] == 4
    assert ask("verify", *accepted(), "--policy", "tolerance")[1]["caught_by"] == 4
    assert ask("verify", *accepted(), "--policy", "exact-full")[1]["policy"] == "exact-full/4"


# -- policy -------------------------------------------------------------------------------------------------------


def test_policy_lists_the_presets(call, ask):
    code, out, _ = call("policy")
    assert code == 0
    lines = out.splitlines()
    assert [line.split()[0] for line in lines[: len(policies.PRESETS)]] == list(policies.PRESETS)
    found = ask("policy")[1]["presets"]
    assert [(row["name"], row["digest"]) for row in found] == [
        (name, policy_digest(policies.load(name))) for name in policies.PRESETS
    ]


def test_policy_prints_a_file_that_is_that_policy(call, ask):
    code, out, _ = call("policy", "tolerance")
    digest = policy_digest(policies.load("tolerance"))
    assert (code, out.splitlines()[0]) == (0, f"# tolerance: {digest}")
    Path("tolerance.toml").write_text(out)
    code, found = ask("policy", "./tolerance.toml")
    assert (code, found["digest"], found["policy"]["limits"]["floor"]) == (0, digest, 4.0)


def test_a_policy_is_named_as_its_own_file(call, ask):
    Path("mine.toml").write_text(call("policy", "tolerance")[1])
    assert ask("policy", "mine.toml")[1]["policy"]["name"] == "mine"
    Path("other.toml").write_text('base = "tolerance"\nname = "mine"')  # it says so itself
    Path("copy.toml").write_text(call("policy", "other.toml")[1])
    assert ask("policy", "copy.toml")[1]["policy"]["name"] == "mine"


def test_a_policy_with_an_unknown_procedure_is_refused(call):
    Path("b.toml").write_text('procedure = "eight-step"')
    code, out, err = call("policy", "b.toml")
    assert (code, out) == (3, "")
    assert "no procedure is called 'eight-step': there is eight-steps, paper-2021" in err


# -- first weights and order --------------------------------------------------------------------------------------


def own_order():
    return np.stack([np.random.default_rng(epoch).permutation(50) for epoch in range(2)])


BEGINNINGS = {
    "a rule": (["--rule", "tolerance"], "self-seeded"),
    "a seed": (["--init-seed", "7"], "seed-declared"),
    "an order": (["--order", "order.npy"], "observed"),
    "given weights": (["--start", "first.safetensors", "--start-kind", "given"], "self-seeded"),
}


@pytest.mark.parametrize("case", BEGINNINGS)
def test_a_beginning_and_the_command_that_checks_it(case, ask):
    words, level = BEGINNINGS[case]
    np.save("order.npy", own_order())
    pol.write_model(factory().proof(), "first.safetensors")
    code, made = ask("record", RECIPE, "--out", "proof", "--threads", "1", *words)
    assert code == 0
    report = checked(ask, made)
    assert (report["verdict"], report["assurance"]["level"]) == ("ACCEPT", level)
    assert ask("verify", "proof", "--recipe", RECIPE)[1]["verdict"] != "ACCEPT"


@pytest.mark.parametrize("case", BEGINNINGS)
@pytest.mark.parametrize("at", [0, 1])
def test_a_beginning_goes_on_where_it_was_interrupted(case, at, call, ask, monkeypatch):
    words, _ = BEGINNINGS[case]
    np.save("order.npy", own_order())
    pol.write_model(factory().proof(), "first.safetensors")
    monkeypatch.setattr(Stopped, "at", at)
    monkeypatch.setattr("pol.prover.LocalProcess", Stopped)
    code, _, err = call("record", RECIPE, "--out", "proof", "--threads", "1", "--every", "1", *words)
    assert code == 130
    monkeypatch.setattr("pol.prover.LocalProcess", Here)
    code, made = ask(*shlex.split(err.splitlines()[-1])[1:])
    assert code == 0, made
    assert checked(ask, made)["verdict"] == "ACCEPT"


def checked(ask, made):
    """The report of the command that a recording names, and of its repetition when the prover has answered it."""
    command = shlex.split(made["next"])[1:]
    code, report = ask(*command)
    if "--openings" in command:
        assert code == 2
        folder = command[command.index("--openings") + 1]
        assert report["request"] == str(Path(folder, "request.json").absolute())
        assert ask("regenerate", "proof", "--recipe", RECIPE, "--out", folder)[0] == 0
        code, report = ask(*command, "--nonce", report["nonce"], "--attestation", report["attestation"])
    return report


REFUSED = {
    "long intervals": (
        RECIPE, ["--every", "12"], "an interval has 12 steps, it allows 1 (record with --every 1)",
        '<file with base = "tolerance" and bounds.max_every = 12>',
    ),
    "half precision": (
        PLAIN.replace(":Plain", ":Halved"), ["--every", "12"], "parameters are BF16",
        "<none of rule tolerance takes BF16>",
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", REFUSED)
def test_a_run_that_the_preset_refuses_is_said_to_be_one(case, call):
    recipe, options, why, policy = REFUSED[case]
    words = ["record", recipe, "--out", "proof", "--threads", "1", *options]
    code, out, err = call(*words, "--rule", "tolerance", "--genesis-only")
    assert (code, err.count("warning: the policy `tolerance` refuses this run: ")) == (0, 1)
    assert why in err
    code, out, err = call(*words[:4], "--resume", "--threads", "1")
    assert (code, err.count(why)) == (0, 1)
    printed = out.splitlines()[-1].strip()
    assert printed.endswith(f" --policy {policy}")
    command = shlex.split(printed.removesuffix(f" --policy {policy}"))
    assert call(*command[1:], "--policy", "tolerance")[0] == 1
    Path("needed.toml").write_text('base = "tolerance"\n[bounds]\nmax_every = 12')
    assert call(*command[1:], "--policy", "needed.toml")[0] == (0 if "base" in policy else 1)


def test_an_optimizer_that_the_preset_does_not_take_is_said_to_be_one(call):
    adam = PLAIN.replace("plain.py:Plain", "adam.py:Adagrad")
    code, out, err = call(
        "record", adam, "--out", "proof", "--threads", "1", "--every", "1", "--keep", "1", "--rule", "tolerance"
    )
    assert code == 0
    assert "refuses this run: optimizer is a torch.optim.adagrad.Adagrad: what errors of its state" in err
    command, _, policy = out.splitlines()[-1].strip().partition(" --policy ")
    assert policy.startswith('<file with base = "tolerance" and limits.optimizers = ["torch.optim.adagrad.Adagrad"]')
    verifying = shlex.split(command)[1:]
    assert call(*verifying, "--policy", "tolerance")[0] == 2
    named = policy.partition("limits.")[2].removesuffix(">")
    Path("needed.toml").write_text(f'base = "tolerance"\n[limits]\n{named}')
    assert call(*verifying, "--policy", "needed.toml")[0] == 0


def test_a_run_that_a_policy_takes_has_no_warning(call):
    for rule, every in (("tolerance", 1), ("exact", 12)):
        words = ["record", RECIPE, "--out", rule, "--threads", "1", "--rule", rule, "--every", every]
        assert "warning" not in call(*words)[2]


def test_observed_weights_ask_for_their_level(ask):
    pol.write_model(factory().proof(), "first.safetensors")
    words = ["--start", "first.safetensors", "--start-kind", "observed"]
    made = ask("record", RECIPE, "--out", "proof", "--threads", "1", *words)[1]
    assert made["next"].endswith("--assurance observed")


ORDERS = {
    "no file": (None, "no such file"),
    "no array": (lambda f: f.write(b"import os"), "not a numpy file"),
    "objects": (lambda f: np.save(f, np.array([[{}]]), allow_pickle=True), "not a numpy file"),
    "fractions": (lambda f: np.save(f, own_order() * 1.0), "float64 of shape (2, 50)"),
    "one epoch": (lambda f: np.save(f, own_order()[0]), "int64 of shape (50,)"),
    "an archive": (lambda f: np.savez(f, own_order()), "an archive"),
    "too few epochs": (lambda f: np.save(f, own_order()[:1]), "2 epochs"),
    "no such sample": (lambda f: np.save(f, own_order() + 1), "0 to 49"),
}


@pytest.mark.parametrize("case", ORDERS)
def test_an_order_that_is_none(case, ask):
    write, message = ORDERS[case]
    if write:
        with Path("order.npy").open("wb") as file:
            write(file)
    code, problem = ask("record", RECIPE, "--out", "proof", "--threads", "1", "--order", "order.npy")
    assert (code, problem["kind"]) == (3, "UsageError")
    assert message in problem["error"]


def test_a_nonce_repeats_a_challenge(ask):
    options = ["--strategy", "uniform", "--uniform", "1"]  # with two, all five are drawn now and then
    first = ask("verify", *accepted(), *options)[1]
    again = ask("verify", *accepted(), *options, "--nonce", first["nonce"])[1]
    assert first["draws"] == again["draws"]
    assert len(again["intervals"]) < again["draws"]["intervals"]


# -- inspect ------------------------------------------------------------------------------------------------------


def test_inspect_says_what_is_claimed_and_that_nothing_is_verified(call, ask):
    code, out, _ = call("inspect", GOOD)
    expected = json.loads((GOOD.parent / "expected.json").read_text())["good-toy"]
    assert code == 0
    assert out.startswith("Nothing here has been verified.")
    for name in ("genesis", "attestation", "claimant", "recipe", "beacon"):
        assert expected[name] in out
    assert expected["dataset"]["digest"] in out
    code, summary = ask("inspect", GOOD)
    assert (code, summary["verified"], summary["claimant"]) == (0, False, expected["claimant"])
    assert summary["claims"]["genesis"] == expected["genesis"]
    assert summary["final_loss"] == summary["losses"][-1]["loss"]
    assert summary["files"] == sum(file.is_file() for file in GOOD.rglob("*"))


def rewritten(folder, change):
    """A copy of a proof with another genesis under the old signature: inspecting is not checking."""
    shutil.copytree(GOOD, folder)
    envelope = json.loads((folder / "genesis.json").read_bytes())
    payload = json.loads(base64.b64decode(envelope["payload"]))
    change(payload)
    envelope["payload"] = base64.b64encode(canonical.encode(payload)).decode()
    (folder / "genesis.json").write_bytes(canonical.encode(envelope))
    return folder


def test_names_in_a_proof_cannot_paint(call, ask):
    def change(payload):
        payload["recipe"]["name"] = "\x1b[2J\x1b[H\x1b[32mACCEPT\u202e"

    proof = rewritten(Path("painted"), change)
    for words in (["inspect", proof], ["verify", proof]):
        _, out, err = call(*words)
        assert "ACCEPT" in out + err
        assert not {"\x1b", "\u202e"} & set(out + err)
    assert ask("inspect", proof)[1]["claims"]["recipe"].startswith("\x1b")


def test_numbers_in_a_proof_cost_nothing(call):
    def change(payload):
        payload["spec"].update(steps=2**53 - 1, every=1, keep=1)
        payload["spec"]["declaration"].update(epochs=2**53 - 1)

    started = time.monotonic()
    code, out, _ = call("inspect", rewritten(Path("huge"), change))
    assert code == 0
    assert "9,007,199,254,740,991 of k = 1 step" in out
    assert time.monotonic() - started < 5


@pytest.mark.parametrize("name", ["genesis.json", "attestation.json", "log.jsonl", "journal.json"])
def test_inspect_names_a_file_that_does_not_parse(name, ask):
    shutil.copytree(GOOD, "broken")
    Path("broken", name).write_bytes(b"{}\n{}\n")
    code, problem = ask("inspect", "broken")
    assert (code, problem["kind"]) == (3, "FormatError")
    assert name in problem["error"]


@pytest.mark.parametrize("missing", [["attestation.json"], ["genesis.json", "attestation.json"], ["log.jsonl"]])
def test_inspect_shows_what_is_there(missing, call):
    shutil.copytree(GOOD, "part", ignore=lambda *_: missing)
    Path("part", store.LOCK).touch()
    code, out, _ = call("inspect", "part")
    assert code == 0
    assert ("unfinished" in out) == ("attestation.json" in missing)
    assert ("Recipe" in out) == ("genesis.json" not in missing)


def test_half_a_line_at_the_end_of_the_log_is_no_error(ask):
    shutil.copytree(GOOD, "part", ignore=lambda *_: ["attestation.json"])
    whole = ask("inspect", "part")[1]
    log = Path("part", "log.jsonl")
    log.write_bytes(log.read_bytes() + b'{"batches":"blake3:12')
    assert ask("inspect", "part")[1]["losses"] == whole["losses"] != []


# -- progress -----------------------------------------------------------------------------------------------------


def test_progress_without_a_terminal_is_a_line_now_and_then(capsys, monkeypatch):
    now = [0.0]
    monkeypatch.setattr(progress_module.time, "monotonic", lambda: now[0])
    with progress_module.progress() as tell:
        tell("dry build", 0, None)
        for step in range(1, 101):
            now[0] += 0.25
            tell("training", step, 100)
        tell("", 5, None)
    out, err = capsys.readouterr()
    assert out == ""
    assert err.splitlines() == ["pol: dry build", "pol: training 1/100", "pol: training 41/100", "pol: training 81/100"]


def test_progress_on_a_terminal_is_a_bar_with_an_estimate(capsys, monkeypatch):
    monkeypatch.setenv("FORCE_COLOR", "1")
    with progress_module.progress() as tell:
        tell("dry build", 0, None)
        for step in range(0, 51, 10):
            tell("training", step, 100)
            time.sleep(0.02)
    out, err = capsys.readouterr()
    assert out == ""
    assert "dry build" in err
    assert re.search(r"50/100, \d+\.\d s left", err)


# -- demo ---------------------------------------------------------------------------------------------------------


def test_a_failed_demo_is_1(call, ask, monkeypatch):
    from factory import check

    outcome = Outcome(0.97, check(factory().proof()), "ACCEPT", STEPS, 1.0, 1000, [], None)
    monkeypatch.setattr("pol.demo.run", lambda folder, **options: outcome)
    code, out, _ = call("demo")
    assert code == 1
    assert "The demo failed: no forgery was made" in out
    code, told = ask("demo")
    assert (code, told["ok"], told["forgeries"]) == (1, False, [])
    jsonschema.Draft202012Validator(SCHEMA).validate(told["honest"])


def test_demo_keeps_its_files_only_where_nothing_is(ask):
    Path("full").mkdir()
    Path("full", "thesis.tex").write_text("")
    code, problem = ask("demo", "--out", "full")
    assert code == 3
    assert "full is not empty" in problem["error"]


# -- real processes -----------------------------------------------------------------------------------------------


def spawn(*words, code="import sys; from pol.cli import main; sys.exit(main())", **options):
    command = [sys.executable, "-c", code, *map(str, words)]
    return subprocess.run(command, capture_output=True, text=True, timeout=280, **options)


NO_TORCH = "import sys; sys.modules['torch'] = None; from pol.cli import main; sys.exit(main())"


@pytest.mark.parametrize(
    "words",
    [["--help"], ["keygen", "key.pem"], ["policy", "tolerance"], ["inspect", GOOD, "--json"]],
    ids=lambda w: w[0],
)
def test_what_trains_nothing_needs_no_torch(words):
    done = spawn(*words, code=NO_TORCH)
    assert (done.returncode, done.stderr) == (0, "")


def test_public_names_need_no_torch():
    code = (
        "import sys; sys.modules['torch'] = None; import pol\n"
        "assert not {'pol.prover', 'pol.verifier'} & set(sys.modules), 'not lazy'\n"
        "print(*(name for name in pol.__all__ if getattr(pol, name) is not None and name in dir(pol)))"
    )
    done = spawn(code=code)
    assert done.stdout.split() == pol.__all__, done.stderr
    with pytest.raises(AttributeError, match="no attribute 'prove'"):
        pol.prove  # noqa: B018


def test_module_is_the_command():
    done = subprocess.run([sys.executable, "-m", "pol", "certify"], capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stdout) == (3, "")
    assert done.stderr.startswith("error: No such command 'certify'")


def test_a_reader_that_leaves_does_not_change_the_exit_code():
    read, write = os.pipe()
    os.close(read)
    command = [sys.executable, "-m", "pol", "inspect", str(GOOD)]
    done = subprocess.run(command, stdout=write, stderr=subprocess.PIPE, text=True, timeout=60)
    os.close(write)
    assert (done.returncode, done.stderr) == (0, "")


NOISY = """
from toy import Toy
class Noisy(Toy):
    def step(self, parts, batch):
        print("a line of the recipe's own")
        return super().step(parts, batch)
"""


@pytest.mark.slow
def test_json_stays_whole_when_a_recipe_prints_and_the_parent_needs_no_torch():
    Path("toy.py").write_bytes(Path(RECIPE.rpartition(":")[0]).read_bytes())
    Path("noisy.py").write_text(NOISY)
    done = spawn("record", "noisy.py:Noisy", "--out", "p", "--threads", "1", "--json", code=NO_TORCH)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["steps"] == STEPS
    assert "a line of the recipe's own" in done.stderr
    done = spawn("verify", "p", "--recipe", "noisy.py:Noisy", "--json", code=NO_TORCH)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["verdict"] == "ACCEPT"


SLOW = """
import time
from toy import Toy
class Slow(Toy):
    def step(self, parts, batch):
        time.sleep(0.3)
        return super().step(parts, batch)
"""


@pytest.mark.slow
def test_ctrl_c_ends_a_recording_that_then_goes_on():
    Path("toy.py").write_bytes(Path(RECIPE.rpartition(":")[0]).read_bytes())
    Path("slow.py").write_text(SLOW)
    words = ["record", "slow.py:Slow", "--out", "p", "--threads", "1", "--every", "2"]
    started = subprocess.Popen(
        [sys.executable, "-m", "pol", *words], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    deadline = time.monotonic() + 120
    while not list(Path("p").glob("checkpoints/*4.safetensors")):
        assert started.poll() is None, started.stderr.read()
        assert time.monotonic() < deadline
        time.sleep(0.05)
    started.send_signal(signal.SIGINT)
    out, err = started.communicate(timeout=30)
    assert (started.returncode, out) == (130, ""), err
    assert "Traceback" not in err
    message = err[err.index("Interrupted at step") :].splitlines()
    command = shlex.split(message[1])
    done = spawn(*command[1:], "--json")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["steps"] == STEPS
    assert json.loads(Path("p", "journal.json").read_text())["resumes"] != []
    assert spawn("verify", "p", "--recipe", "slow.py:Slow").returncode == 0


@pytest.mark.slow
def test_demo_tells_the_whole_story():
    done = spawn("demo", "--out", "story", "--json")
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout)
    assert told["ok"] is True
    assert told["accuracy"] >= 0.95
    assert told["honest"]["verdict"] == "ACCEPT"
    assert len(told["forgeries"]) >= 10
    assert sum(row["paper"] == "ACCEPT" for row in told["forgeries"]) >= 5  # the verification of 2021 is fooled
    assert {row["verdict"] for row in told["forgeries"]} == {"REJECT"}
    assert len({row["step"] for row in told["forgeries"]}) >= 4  # not one check that catches everything
    command = shlex.split(told["command"])
    assert command[:3] == ["pol", "verify", "story/honest"]
    assert spawn(*command[1:]).returncode == 0
    for row in told["forgeries"]:
        assert Path("story", "forgeries", row["name"]).is_dir()
