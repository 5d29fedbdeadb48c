"""`make gpu-check`: its rows on a GPU where there is one; that the script does not rot where there is none."""

from __future__ import annotations

import importlib
import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

SCRIPT = Path(__file__).parents[2] / "benchmarks" / "gpu_check.py"
FAST = ["versions", "attention", "registered", "transfer", "pinned", "guard", "checkpoint", "memory", "engine", "syncs"]


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


def raises(device):
    raise RuntimeError("CUDA error: an illegal memory access\nsecond line")


def hangs(device):
    subprocess.Popen(["sleep", "60"])
    time.sleep(60)


@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")
def test_rows_that_fail_hang_or_die_do_not_stop_the_others(tmp_path, monkeypatch, capsys):
    monkeypatch.syspath_prepend(SCRIPT.parent)
    gpu_row, gpu_process = map(importlib.import_module, ("gpu_row", "gpu_process"))

    def not_found(device):
        raise gpu_row.FailedError("it is slower")

    functions = {
        "raises": raises,
        "hangs": hangs,
        "dies": lambda device: os.kill(os.getpid(), 9),
        "fails": not_found,
        "works": lambda device: {"jets": 3},
    }
    rows = {
        name: gpu_row.Row("something", function, 0.3 if name == "hangs" else 60.0)
        for name, function in functions.items()
    }
    path = tmp_path / "found.json"
    started = time.monotonic()
    entries = gpu_process.check(rows, "cpu", path)
    assert time.monotonic() - started < 20
    assert [entry["verdict"] for entry in entries] == [
        "FAILED: RuntimeError: CUDA error: an illegal memory access",
        "FAILED: no answer within 0 s",
        "FAILED: its process ended with code -9",
        "FAILED: it is slower",
        "ok",
    ]
    written = json.loads(path.read_text())
    assert written["rows"] == entries
    assert written["conditions"]["device"] == "cpu"
    assert "in raises" in entries[0]["traceback"]
    assert entries[-1]["found"] == {"jets": 3}
    assert "second line" in capsys.readouterr().out
    late = gpu_process.check({"works": rows["works"]}, "cpu", path, limit=0)
    assert late[0]["verdict"] == "FAILED: no time was left for it"


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
