"""A training set from a list of ROOT files: what is not staged yet is converted, then the set is constructed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bhive_mltf.config import Config
from bhive_mltf.data.build.construct import construct
from bhive_mltf.data.build.stage import stage_many
from bhive_mltf.data.manifest import Manifest
from bhive_mltf.data.ntuples.jobs import StageJob, earlier_names
from bhive_mltf.files.lock import DirectoryLock
from bhive_mltf.files.records import Record


@dataclass(frozen=True)
class BuildRequest:
    """A training set to make.

    directory : of the set.
    config : with the reference flavour that weights the jets.
    filelist : the files asked for.
    jobs : one per staged file, in the order of `filelist`.
    parameters : recorded as what the set was made with.
    outputs : names of the files that say, together, that the set is there.
    workers : processes that convert, and threads that construct.
    is_test_set : its jets are only evaluated, see `construct`.
    """

    directory: Path
    config: Config
    filelist: tuple[str, ...]
    jobs: Sequence[StageJob]
    parameters: dict[str, Any]
    outputs: tuple[str, ...]
    chunk_size: int
    seed: int
    weighting: str
    memory_mb: int
    workers: int
    is_test_set: bool = False


def build(request: BuildRequest) -> Manifest | None:
    """Make the set and remove the staged files; None when another command had made it meanwhile.

    Raises
    ------
    DataError and its kinds : the jets cannot make a training set.
    """
    directory, staged = request.directory, [job.target for job in request.jobs]
    with DirectoryLock(directory, wait_s=None):
        if all((directory / name).exists() for name in request.outputs):
            _remove_staged(request.jobs)
            return None
        stage_many([job for job in request.jobs if not job.target.exists()], workers=request.workers)
        # before the set can look complete; its generation is known only afterwards
        Record(request.parameters, generation="").write(directory)
        manifest = construct(
            request.config,
            staged,
            directory,
            chunk_size=request.chunk_size,
            seed=request.seed,
            filelist=request.filelist,
            weighting=request.weighting,
            is_test_set=request.is_test_set,
            memory_mb=request.memory_mb,
            threads=request.workers,
        )
        Record(request.parameters, generation=manifest.digest[:12]).write(directory)
        _remove_staged(request.jobs)
    return manifest


def _remove_staged(jobs: Sequence[StageJob]) -> None:
    """Remove the staged files, and what earlier versions left of the same jets."""
    for job in jobs:
        debug = job.options.max_chunks is not None
        names = earlier_names(job.config, job.paths, job.seed, debug=debug, skip_bad_files=job.skip_bad_files)
        for path in (job.target, *(job.target.with_name(name) for name in names)):
            path.unlink(missing_ok=True)
