"""The journal of a training: what is told to MLflow, kept beside the training first. No mlflow here.

`journal/<start>_<host>_<pid>_<token>.jsonl`, one file per process that tells something, so that each file has one
writer; `<file>.sent` says up to which byte it was delivered. A line is a JSON object with a `kind`
(`bhive_mltf.tracking.deliver` has them all); the first line says who wrote the file. A line that a kill cut short
is no line. Not SQLite: its locks do not work on the network file systems where outputs lie.
"""

from __future__ import annotations

import json
import math
import os
import secrets
import socket
import threading
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from bhive_mltf.files import atomic
from bhive_mltf.tracking.auth import without_secrets

FOLDER = "journal"
SUFFIX = ".jsonl"
VERSION = 1
Record = dict[str, Any]


def folder_of(directory: Path) -> Path:
    """Where the journal of a training directory lies."""
    return directory / FOLDER


def files(directory: Path) -> list[Path]:
    """The files of a training's journal, in the order in which they were begun."""
    return sorted(folder_of(directory).glob(f"*{SUFFIX}"))


def read(path: Path, offset: int = 0) -> Iterator[tuple[Record, int]]:
    """Records from byte `offset` on, and where each ends; a line that is no record comes as an empty one."""
    with path.open("rb") as file:
        file.seek(offset)
        for line in file:
            if not line.endswith(b"\n"):  # being written, or cut by a kill
                return
            offset += len(line)
            try:
                record = json.loads(line)
            except ValueError:
                record = {}
            yield (record if isinstance(record, dict) else {}), offset


def records(directory: Path) -> Iterator[Record]:
    """All records of a training, file by file."""
    for path in files(directory):
        for record, _ in read(path):
            yield record


def sent(path: Path) -> int:
    """Up to which byte a file was delivered."""
    try:
        return int(path.with_suffix(".sent").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return 0


def mark_sent(path: Path, offset: int) -> None:
    """Note that a file was delivered up to byte `offset`; what is sent again after a power cut does no harm."""
    with atomic.replace_file(path.with_suffix(".sent"), durable=False) as temporary:
        temporary.write_text(str(offset), encoding="utf-8")


def last_status(directory: Path, child: str = "") -> str | None:
    """The newest status of the run of a training, or of a child of it; None if there is none."""
    return newest_status(directory, child)[1]


def newest_status(directory: Path, child: str = "") -> tuple[int, str | None]:
    """When the newest status was (milliseconds since 1970), and the status.

    By time, where several processes write at once: that of the record, else of the beginning of its file.
    """
    newest: tuple[int, str | None] = (0, None)
    for path in files(directory):
        begun = 0
        for record, _ in read(path):
            begun = int(record.get("time", 0)) if "journal" in record else begun
            if record.get("kind") == "status" and record.get("child", "") == child:
                when = int(record.get("time", begun))
                newest = (when, str(record["status"])) if when >= newest[0] else newest
    return newest


class Journal:
    """The journal of a training as one process writes it; its file begins with the first record.

    The first value of a metric at a step wins, also over processes and interruptions. Raises OSError where the file
    cannot be written.
    """

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.path: Path | None = None
        self._lock = threading.Lock()
        self._handle: int | None = None
        self._torn = False
        self._seen: dict[tuple[str, str, str], set[int]] = {}
        for record in records(directory):
            if record.get("kind") == "metrics":
                for key in record["values"]:
                    self._is_first(record.get("child", ""), key, record.get("of", ""), record["step"])

    def append(self, kind: str, **content: object) -> None:
        """Add a record, without secrets; on its way to the disk when this returns, whatever happens to the process."""
        with self._lock:
            self._write({"kind": kind, **without_secrets(content)})

    def metrics(
        self, values: Mapping[str, float], step: int, milliseconds: int, *, child: str = "", of: str = ""
    ) -> None:
        """Add values of metrics at a step, those that are the first there.

        of : what the values are of, when the same metric may be taken of several things (test sets).
        """
        with self._lock:
            new = {key: value for key, value in values.items() if self._is_first(child, key, of, step)}
            if not new:
                return
            plain = {key: value if math.isfinite(value) else str(value) for key, value in new.items()}
            about = {**({"child": child} if child else {}), **({"of": of} if of else {})}
            self._write({"kind": "metrics", "values": plain, "step": step, "time": milliseconds, **about})

    def find(self, key: str, step: int) -> tuple[float, int] | None:
        """(value, time in ms) of a metric of the run itself at a step."""
        for record in records(self.directory):
            own = record.get("kind") == "metrics" and not record.get("child")
            if own and record["step"] == step and key in record["values"]:
                return float(record["values"][key]), int(record["time"])
        return None

    def next_step(self, prefix: str) -> int:
        """The step after the last one of the metrics that begin with `prefix` and have no further `/`."""
        with self._lock:
            steps = [
                max(seen)
                for (_, key, _), seen in self._seen.items()
                if key.startswith(prefix) and "/" not in key[len(prefix) :]
            ]
        return max(steps, default=-1) + 1

    def close(self) -> None:
        """Close the file."""
        with self._lock:
            if self._handle is not None:
                os.close(self._handle)
                self._handle = None

    def _is_first(self, child: str, key: str, of: str, step: int) -> bool:
        seen = self._seen.setdefault((child, key, of), set())
        if step in seen:
            return False
        seen.add(step)
        return True

    def _write(self, record: Mapping[str, object]) -> None:
        if self._handle is None:
            self._open()
        assert self._handle is not None
        line = json.dumps(record, default=str, separators=(",", ":")).encode() + b"\n"
        # a line that a full disk cut short must not swallow this one
        line = b"\n" + line if self._torn else line
        self._torn = True
        if os.write(self._handle, line) != len(line):
            raise OSError(f"{self.path} cannot be written whole")
        self._torn = False

    def _open(self) -> None:
        folder = folder_of(self.directory)
        folder.mkdir(parents=True, exist_ok=True)
        host, pid = socket.gethostname(), os.getpid()
        if self.path is None:
            name = f"{time.time_ns():020d}_{host}_{pid}_{secrets.token_hex(4)}{SUFFIX}"
            self.path = folder / name
        self._handle = os.open(self.path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o644)
        if os.fstat(self._handle).st_size == 0:
            header = {"journal": VERSION, "host": host, "pid": pid, "time": int(time.time() * 1000)}
            os.write(self._handle, json.dumps(header).encode() + b"\n")
