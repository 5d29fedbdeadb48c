"""What is to be staged. Light: naming a staged file needs neither uproot nor pyarrow."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from bhive_mltf.config import Config
from bhive_mltf.data.filelist import is_remote

# Part of the names of staged files: raise it whenever the conversion gives other jets.
FORMAT_VERSION = 1


@dataclass(frozen=True)
class ReadOptions:
    """How much of a file is in memory at a time; `max_chunks` ends the reading early (debugging)."""

    max_jets: int = 50_000
    max_bytes: int = 64 << 20
    max_chunks: int | None = None

    @classmethod
    def for_debugging(cls) -> ReadOptions:
        """At most 20 chunks of 5000 jets, as upstream."""
        return cls(max_jets=5_000, max_chunks=20)


@dataclass(frozen=True)
class StageJob:
    """One staged file to make.

    paths : source files.
    target : where the staged file appears.
    seed : of the global order.
    skip_bad_files : leave files out that cannot be read whole, and record them.
    """

    config: Config
    paths: tuple[str, ...]
    target: Path
    seed: int
    skip_bad_files: bool = False
    options: ReadOptions = field(default_factory=ReadOptions)


def staged_name(
    config: Config, paths: Sequence[str], seed: int, *, debug: bool = False, skip_bad_files: bool = False
) -> str:
    """Name of the staged file of some source files: a digest of all that decides its content.

    Cheap: looks at path, size and time of change of each file. A missing file gives a name too.
    """
    files = [(path, *_stamp(path)) for path in paths]
    content = [FORMAT_VERSION, config.dataset_digest, config.processes, seed, debug, skip_bad_files, files]
    return hashlib.sha256(json.dumps(content).encode()).hexdigest()[:32] + ".arrow"


def _stamp(path: str) -> tuple[int, int]:
    if is_remote(path):
        return 0, 0
    try:
        status = os.stat(path)  # noqa: PTH116 - one call per file of a long list
    except OSError:
        return -1, -1
    return status.st_size, status.st_mtime_ns
