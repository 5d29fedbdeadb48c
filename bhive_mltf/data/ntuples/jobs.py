"""What is to be staged. Light: naming a staged file needs neither uproot nor pyarrow."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from bhive_mltf.config import Config
from bhive_mltf.data.ntuples.filelist import is_remote
from bhive_mltf.errors import ParameterError

# Part of the names of staged files: raise it whenever the conversion gives other jets, or their format changes.
FORMAT_VERSION = 3
# Suffixes by version; those before this one are only removed.
_SUFFIXES = {2: ".jets", FORMAT_VERSION: ".arrow"}

# MB that a process needs before it has read a jet: Python and its libraries; and the least that leaves room for jets.
BASE_MB, LEAST_MB = 220, 320
DEFAULT_MB = 1024
# Bytes in memory per byte of the branches of a chunk: as read, as numbers, as columns, as rows.
_COPIES = 8
# Larger arrays are slower: caches do not hold them, and the allocator gives them back to the system each time.
_MOST_BYTES = 16 << 20


def check_memory(memory_mb: int) -> int:
    """The budget of a converting process in MB, as given; ParameterError when it is too small to work with."""
    if memory_mb < LEAST_MB:
        raise ParameterError(
            f"--conversion-memory {memory_mb}: a converting process needs {LEAST_MB} MB or more; the default is "
            f"{DEFAULT_MB}"
        )
    return memory_mb


@dataclass(frozen=True)
class ReadOptions:
    """How much of a file is in memory at a time.

    max_jets : jets of a chunk.
    memory_mb : budget of a process in MB; decides the bytes of a chunk.
    max_chunks : ends the reading of a file early (debugging).
    """

    max_jets: int = 50_000
    memory_mb: int = DEFAULT_MB
    max_chunks: int | None = None

    @classmethod
    def for_debugging(cls) -> ReadOptions:
        """At most 20 chunks of 5000 jets, as upstream."""
        return cls(max_jets=5_000, max_chunks=20)

    @property
    def chunk_bytes(self) -> int:
        """Bytes of the branches of a chunk, uncompressed."""
        return min(_MOST_BYTES, ((check_memory(self.memory_mb) - BASE_MB) << 20) // _COPIES)


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
    config: Config,
    paths: Sequence[str],
    seed: int,
    *,
    debug: bool = False,
    skip_bad_files: bool = False,
    version: int = FORMAT_VERSION,
) -> str:
    """Name of the staged file of some source files: a digest of all that decides its content.

    Cheap: looks at path, size and time of change of each file. A missing file gives a name too.
    """
    files = [(path, *_stamp(path)) for path in paths]
    content = [version, config.dataset_digest, config.processes, seed, debug, skip_bad_files, files]
    return hashlib.sha256(json.dumps(content).encode()).hexdigest()[:32] + _SUFFIXES[version]


def earlier_names(
    config: Config, paths: Sequence[str], seed: int, *, debug: bool = False, skip_bad_files: bool = False
) -> list[str]:
    """Names that earlier versions gave the staged file: an interrupted construction may have left it."""
    options = {"debug": debug, "skip_bad_files": skip_bad_files}
    return [staged_name(config, paths, seed, version=v, **options) for v in _SUFFIXES if v != FORMAT_VERSION]


def _stamp(path: str) -> tuple[int, int]:
    if is_remote(path):
        return 0, 0
    try:
        status = os.stat(path)  # noqa: PTH116 - one call per file of a long list
    except OSError:
        return -1, -1
    return status.st_size, status.st_mtime_ns
