"""`make gpu-check`: its rows on a GPU where there is one; that the script does not rot where there is none."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

SCRIPT = Path(__file__).parents[2] / "benchmarks" / "gpu_check.py"
FAST = ["versions", "attention", "registered", "transfer", "pinned", "guard", "checkpoint", "memory"]


def check(path, *rows, device):
    command = [sys.executable, SCRIPT, "--only", ",".join(rows), "--device", device, "--json", path]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return json.loads(path.read_text())


@pytest.mark.long
def test_rows_on_a_cpu(tmp_path):
    found = check(tmp_path / "found.json", *FAST, device="cpu")
    assert [row["name"] for row in found["rows"]] == FAST
    assert [row["name"] for row in found["rows"] if row["verdict"] != "ok"] == []
    assert [row["name"] for row in found["rows"] if "not run" in row["found"]] == ["pinned"]
    assert found["conditions"]["device"] == "cpu"


@pytest.mark.long
def test_an_unknown_row_is_refused(tmp_path):
    command = [sys.executable, SCRIPT, "--only", "atention", "--json", tmp_path / "found.json"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode != 0
    assert "there is no row 'atention' (nearest: attention)" in done.stderr
    assert not (tmp_path / "found.json").exists()


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
def test_all_rows_on_a_gpu(tmp_path):
    found = check(tmp_path / "found.json", "all", device="cuda")
    assert [row["name"] for row in found["rows"] if row["verdict"] != "ok"] == []
