"""The benchmarks run, and print and write what they measured. Their numbers are never tested."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


@pytest.mark.slow
def test_quick_run_prints_a_table_and_writes_json(tmp_path):
    out = tmp_path / "bench.json"
    command = [sys.executable, "-m", "benchmarks", "--quick", "--json", str(out)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=280)
    assert done.returncode == 0, done.stderr
    for line in ("| digits CNN, 9,978 parameters, k = 5, 15 steps", "| CharGPT, ", "| state root | "):
        assert line in done.stdout
    written = json.loads(out.read_text())
    assert [result["case"] for result in written["results"]] == ["digits", "text"]
    for result in written["results"]:
        assert result["parts"]
        assert all(seconds > 0 for seconds in result["parts"].values()), "a part that was never entered"
        assert result["state_bytes"] < result["recorder"]["checkpoint_bytes"] < result["method2021"]["checkpoint_bytes"]
        assert result["recorder"]["audit"]["low"] > 0


@pytest.mark.slow
def test_an_unknown_training_is_a_usage_error():
    command = [sys.executable, "-m", "benchmarks", "--only", "nothing"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=100)
    assert done.returncode == 2
    assert "invalid choice: 'nothing' (choose from 'digits', 'text')" in done.stderr
