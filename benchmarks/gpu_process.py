"""Rows of gpu_check.py, each in a process of its own and within a time."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import platform
import signal
import time
import traceback
from collections.abc import Mapping
from datetime import UTC, datetime
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import torch
from gpu_row import FailedError, Found, Row

from bhive_mltf.child_process import end_with
from bhive_mltf.files import atomic

LIMIT = 300.0  # s, for all rows


def driver() -> str:
    """Version of NVIDIA's driver; empty without one."""
    try:
        import pynvml

        pynvml.nvmlInit()
        return str(pynvml.nvmlSystemGetDriverVersion())
    except Exception:  # noqa: BLE001 - no driver, or nothing that asks it
        return ""


def conditions(device: torch.device) -> Found:
    on_gpu = device.type == "cuda"
    return {
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "device": device.type,
        "card": torch.cuda.get_device_name(device) if on_gpu else platform.processor() or platform.machine(),
        "driver": driver(),
        "torch": torch.__version__,
        "cuda": torch.version.cuda or "",
        "threads": torch.get_num_threads(),
    }


def run_row(row: Row, device_name: str, answers: Connection) -> None:
    """In a process of its own: what was found, the verdict, and where it was run."""
    os.setpgrp()  # so that what it starts is ended with it
    end_with(os.getppid(), parent_signal=False, whole_group=True)
    entry: Found = {"found": {}, "verdict": "ok"}
    started = time.perf_counter()
    try:
        device = torch.device(device_name or ("cuda" if torch.cuda.is_available() else "cpu"))
        entry["conditions"] = conditions(device)
        entry["found"] = row.function(device)
    except FailedError as error:
        entry["verdict"] = f"FAILED: {error}"
    except Exception as error:  # noqa: BLE001 - it is a verdict
        first = (str(error).strip().splitlines() or [""])[0]
        entry |= {"verdict": f"FAILED: {type(error).__name__}: {first}", "traceback": traceback.format_exc()}
    answers.send({**entry, "seconds": time.perf_counter() - started})


def outcome(row: Row, device_name: str, left: float) -> Found:
    """A row's entry, from a process that has so many seconds at most."""
    limit = min(row.limit, left)
    if limit <= 0:
        return {"found": {}, "verdict": "FAILED: no time was left for it", "seconds": 0.0}
    # forked: the imports are done, and nothing here has touched a GPU yet
    context = multiprocessing.get_context("fork")
    receiver, sender = context.Pipe(duplex=False)
    process = context.Process(target=run_row, args=(row, device_name, sender))
    started = time.perf_counter()
    process.start()
    sender.close()
    entry: Found | None = None
    try:
        with contextlib.suppress(EOFError):
            entry = receiver.recv() if receiver.poll(limit) else {"verdict": f"FAILED: no answer within {limit:.0f} s"}
        if entry is None:
            process.join()
            entry = {"verdict": f"FAILED: its process ended with code {process.exitcode}"}
    finally:
        for end in (lambda: os.killpg(process.pid or 0, signal.SIGKILL), process.kill):
            with contextlib.suppress(ProcessLookupError):
                end()
        process.join()
    return {"found": {}, "seconds": time.perf_counter() - started, **entry}


def check(rows: Mapping[str, Row], device_name: str, path: Path, limit: float = LIMIT) -> list[dict[str, Any]]:
    """The rows one by one; `path` holds at any time those that are done."""
    written: dict[str, Any] = {"conditions": {}, "rows": []}
    end = time.perf_counter() + limit
    for name, row in rows.items():
        entry = outcome(row, device_name, end - time.perf_counter())
        written["conditions"] = entry.pop("conditions", written["conditions"])
        written["rows"].append({"name": name, "expected": row.expectation, **entry})
        atomic.write_json(path, written)
        print(
            f"{name:<12}{entry['verdict']}  ({entry['seconds']:.0f} s)\n  expected: {row.expectation}\n"
            f"  found:    {entry['found']}\n{entry.get('traceback', '')}",
            end="",
            flush=True,
        )
    return written["rows"]
