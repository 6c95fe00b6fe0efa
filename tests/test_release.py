"""The released model: what is written is what is verified, and what the recipe's own model loads."""

import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from factory import known_key
from pol.auditor import LocalAuditor
from pol.errors import UsageError
from pol.profile import Profile
from pol.proof.report import Verdict
from pol.prover import record
from pol.release import write_model
from pol.replay.inprocess import InProcess
from pol.verifier import verify

TWO = """
import torch
from torch import nn
from pol import Recipe

class Named(Recipe):
    batch_size = 4
    def __init__(self, name: str = "model", dtype: str = "float32") -> None:
        self.name, self.dtype = name, dtype
    def data(self):
        return [{"x": torch.ones(2) * i} for i in range(8)]
    def build(self):
        dtype = getattr(torch, self.dtype)
        tied = nn.Sequential(nn.Linear(2, 2, bias=False), nn.BatchNorm1d(2), nn.Linear(2, 2, bias=False)).to(dtype)
        tied[2].weight = tied[0].weight
        other = nn.Linear(2, 2).to(dtype)
        optimizer = torch.optim.SGD([*tied.parameters(), *other.parameters()], lr=0.1)
        return {self.name: tied, "other": other, "optimizer": optimizer}
    def step(self, parts, batch):
        loss = getattr(parts, self.name)(batch["x"].to(parts.other.weight.dtype)).pow(2).mean()
        parts.optimizer.zero_grad()
        loss.backward()
        parts.optimizer.step()
        return loss
"""


@pytest.fixture
def train(tmp_path):
    recipe = tmp_path / "named.py"
    recipe.write_text(TWO)

    def run(**settings):
        options = {"every": 1, "profile": Profile(threads=1), "executor": InProcess(), "settings": settings}
        record(f"{recipe}:Named", tmp_path / "proof", key=known_key(1), **options)
        return tmp_path / "proof", LocalAuditor(f"{recipe}:Named", executor=InProcess())

    return run


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float64"])
def test_what_is_written_is_what_was_trained(train, tmp_path, dtype):
    proof, auditor = train(dtype=dtype)
    out = tmp_path / "model.safetensors"
    assert write_model(proof, out) == 7
    model = sys.modules["named"].Named(dtype=dtype).build()["model"]
    model.load_state_dict(load_file(out))  # strict: every name, tied ones too
    assert model[0].weight is model[2].weight
    assert model[1].num_batches_tracked == 2
    assert {tensor.dtype for tensor in model.parameters()} == {getattr(torch, dtype)}
    assert verify(proof, auditor=auditor, model=out).verdict is Verdict.ACCEPT
    data = bytearray(out.read_bytes())
    data[-1] ^= 1
    out.write_bytes(data)
    report = verify(proof, auditor=auditor, model=out)
    assert (report.verdict, report.caught_by) == (Verdict.REJECT, 3)


SHARED = """
import torch
from torch import nn
from pol import Recipe

class Whole(nn.Module):
    def __init__(self, encoder):
        super().__init__()
        self.encoder, self.head = encoder, nn.Linear(2, 2)
    def forward(self, x):
        return self.head(self.encoder(x))

class Shared(Recipe):
    batch_size = 4
    def data(self):
        return [{"x": torch.ones(2) * i} for i in range(8)]
    def build(self):
        encoder = nn.Linear(2, 2)
        model = Whole(encoder)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        return {"encoder": encoder, "model": model, "optimizer": optimizer}
    def step(self, parts, batch):
        loss = parts.model(batch["x"]).pow(2).mean()
        parts.optimizer.zero_grad()
        loss.backward()
        parts.optimizer.step()
        return loss
"""


def test_tensors_that_stand_under_another_part_belong_to_the_model(tmp_path):
    """The encoder is stored once, as a part of its own; a released model without it is not the model."""
    recipe = tmp_path / "shared.py"
    recipe.write_text(SHARED)
    options = {"every": 1, "profile": Profile(threads=1), "executor": InProcess()}
    record(f"{recipe}:Shared", tmp_path / "proof", key=known_key(1), **options)
    out = tmp_path / "model.safetensors"
    assert write_model(tmp_path / "proof", out) == 4
    weights = load_file(out)
    sys.modules["shared"].Shared().build()["model"].load_state_dict(weights)
    auditor = LocalAuditor(f"{recipe}:Shared", executor=InProcess())
    assert verify(tmp_path / "proof", auditor=auditor, model=out).verdict is Verdict.ACCEPT
    save_file({name: tensor for name, tensor in weights.items() if name.startswith("head")}, out)
    report = verify(tmp_path / "proof", auditor=auditor, model=out)
    assert (report.verdict, report.caught_by) == (Verdict.REJECT, 3)
    assert "encoder.bias is missing" in report.reason()


def test_no_model_to_release(train, tmp_path):
    proof, auditor = train(name="first")
    with pytest.raises(UsageError, match="none called 'model'"):
        write_model(proof, tmp_path / "model.safetensors")
    (tmp_path / "any").write_bytes(b"")
    report = verify(proof, auditor=auditor, model=tmp_path / "any")
    assert (report.verdict, report.caught_by) == (Verdict.REJECT, 3)
    assert "releases no model" in report.reason()


def test_an_unfinished_recording_releases_nothing(train, tmp_path):
    proof, _ = train()
    (proof / "attestation.json").unlink()
    with pytest.raises(UsageError, match="not finished"):
        write_model(proof, tmp_path / "model.safetensors")
    assert list(tmp_path.glob("model*")) == []
    assert Path(proof).is_dir()
