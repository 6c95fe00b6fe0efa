"""The benchmarks run, and print and write what they measured. Their numbers are never tested."""

import subprocess
import sys
from pathlib import Path

import msgspec
import numpy as np
import pytest
import torch
from benchmarks import (
    choosing,
    cifar,
    honest,
    honest_table,
    otherwise,
    resnet,
    separation,
    separation_table,
    variants,
)
from benchmarks.apart import Apart

from pol.errors import UsageError

ROOT = Path(__file__).parents[1]


# -- separation and honest runs -----------------------------------------------------------------------------------


def test_resnet_20_has_the_parameters_that_its_paper_says():
    model = resnet.network()
    assert sum(parameter.numel() for parameter in model.parameters()) == 269_722
    assert model(torch.zeros(2, 3, 32, 32)).shape == (2, 10)


def test_pictures_are_moved_and_mirrored_and_stay_as_they_are(tmp_path):
    recipe = resnet.ResNet20(path=str(cifar.invented(tmp_path / "some.npz", 8)), samples=8)
    item = recipe.data()[3]
    before = item["image"].copy()
    seen = {recipe.transform(item, np.random.default_rng(seed))["image"].tobytes() for seed in range(20)}
    assert len(seen) > 1
    assert (item["image"] == before).all()
    assert recipe.transform(item, np.random.default_rng(0))["label"] == item["label"]


@pytest.mark.parametrize("found", ["nothing", "text", "fewer"])
def test_data_that_are_not_there_are_a_usage_error(found, tmp_path):
    path = tmp_path / "some.npz"
    if found == "text":
        path.write_text("no archive")
    if found == "fewer":
        cifar.invented(path, 4)
    with pytest.raises(UsageError, match=r"some\.npz"):
        resnet.ResNet20(path=str(path), samples=8).data()


def test_decoding_without_pillow_says_what_to_install(monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "PIL", None)
    with pytest.raises(SystemExit, match="pip install pillow"):
        cifar.decode(tmp_path / "jpeg.npz", tmp_path / "out.npz")


def test_a_label_alone_is_changed():
    image = np.arange(4, dtype=np.uint8)
    assert variants.relabelled({"image": image, "label": 9}) == {"image": image, "label": 0}
    tokens = np.arange(5, dtype=np.uint8)
    changed = variants.relabelled({"tokens": tokens})["tokens"]
    assert (changed != tokens).tolist() == [False] * 4 + [True]
    data = variants.Edited([{"image": image, "label": 1}] * 3, 1)
    assert [data[i]["label"] for i in range(len(data))] == [1, 2, 1]


def test_the_sample_most_like_another_has_its_label():
    samples = [(0, 0), (9, 0), (1, 1), (3, 0)]
    data = [{"image": np.full(2, value, dtype=np.uint8), "label": label} for value, label in samples]
    assert otherwise.nearest(data, 0) == 3


@pytest.mark.parametrize("normalised", [True, False])
@pytest.mark.parametrize("adamw", [True, False])
def test_variants_of_the_digits_have_what_they_say(normalised, adamw):
    parts = variants.Digits(norm=normalised, adamw=adamw).build()
    assert any(isinstance(layer, torch.nn.BatchNorm2d) for layer in parts["model"]) == normalised
    assert type(parts["optimizer"]).__name__ == ("AdamW" if adamw else "SGD")
    trained = [p for group in parts["optimizer"].param_groups for p in group["params"]]
    assert [id(p) for p in trained] == [id(p) for p in parts["model"].parameters()]


def found(way, kind, start, every, size):
    apart = Apart(whole=size, worst=size, tensor="parameter/w", own=size, limit=size)
    return separation_table.Found(training="one", way=way, kind=kind, start=start, every=every, apart=apart)


def test_separation_is_the_smallest_cheat_over_the_largest_honest_error():
    results = [found("AVX2 machine", "honest", 0, 1, 1e-6), found("AVX2 machine", "honest", 5, 1, 3e-6)]
    results += [found("weight decay 0", "setting", 0, 1, 4e-3), found("weight decay 0", "setting", 5, 1, 6e-3)]
    results += [found("other order", "data", 0, 1, 0.1), found("other order", "data", 5, 1, 0.3)]
    text = separation_table.markdown([separation_table.Measured("made", results)])
    assert "| one | all parameters | 2,500 (1,333) |" in text  # of medians 5e-3 / 2e-6, of the worst 4e-3 / 3e-6
    assert "| one | all parameters | 100,000 (33,333) |" in text  # with data alone
    assert "| one | 100,000 |" in text  # from the first step: 0.1 / 1e-6
    assert "| AVX2 machine | 2.0e-06 (3.0e-06) |" in text
    assert "| *weight decay 0* | 5.0e-03 (4.0e-03) |" in text
    assert "| smallest cheat | weight decay 0 |" in text


def test_every_machine_verifies_what_others_record():
    pairs = honest.pairs()
    assert {recorder for recorder, _ in pairs} == set(honest.RECORDERS)
    assert {verifier for _, verifier in pairs} == set(honest.VERIFIERS)
    assert all(honest.RECORDERS[recorder] != honest.VERIFIERS[verifier] for recorder, verifier in pairs)


@pytest.mark.parametrize(("cases", "quick", "wrong"), [("nothing", True, "nothing"), ("resnet", False, "--cifar")])
def test_trainings_without_data_and_unknown_ones_are_refused(cases, quick, wrong, capsys):
    parser = choosing.parser_for("separation", "some")
    with pytest.raises(SystemExit):
        choosing.chosen(parser, parser.parse_args(["--cases", cases, *(["--quick"] if quick else [])]))
    assert wrong in capsys.readouterr().err


def marked(page, block):
    page.write_text(f"before\n<!-- {block}: begin -->\nold\n<!-- {block}: end -->\nafter\n")
    return page


@pytest.mark.slow
def test_separation_takes_every_way_from_every_start(tmp_path):
    page, out = marked(tmp_path / "page.md", "separation"), tmp_path / "found.json"
    command = [sys.executable, "-m", "benchmarks.separation", "--quick", "--cases", "text", "--every", "1", "2"]
    done = subprocess.run(
        [*command, "--json", out, "--write", page], cwd=ROOT, capture_output=True, text=True, timeout=280
    )
    assert done.returncode == 0, done.stderr
    measured = msgspec.json.decode(out.read_bytes(), type=separation_table.Measured)
    seen = {(one.way, one.start, one.every) for one in measured.found}
    assert seen == {(way.name, start, k) for way in separation.WAYS for start in (0, 3) for k in (1, 2)}
    for one in measured.found:
        assert one.kind == "honest" or one.apart.whole > 0, f"{one.way}: a cheat that changes nothing"
    text = page.read_text()
    assert "old" not in text
    assert "| smallest cheat |" in text


@pytest.mark.slow
def test_honest_runs_are_verified_elsewhere(tmp_path):
    page, out = marked(tmp_path / "page.md", "honest"), tmp_path / "found.json"
    command = [sys.executable, "-m", "benchmarks.honest", "--quick", "--cases", "resnet,text", "--runs", "1"]
    done = subprocess.run(
        [*command, "--json", out, "--write", page], cwd=ROOT, capture_output=True, text=True, timeout=280
    )
    assert done.returncode == 0, done.stderr
    measured = msgspec.json.decode(out.read_bytes(), type=honest_table.Measured)
    assert [one.training for one in measured.found] == ["ResNet-20, SGD, 4 steps", "CharGPT, AdamW, 6 steps"]
    for one, steps in zip(measured.found, (4, 6), strict=True):
        assert one.verdict != "REJECT", one.reason
        assert (one.asked, one.replayed) == (steps - 1, steps), "the first and the last state are in the proof"
    assert "| **all** | **all** | 1 |" in page.read_text()
