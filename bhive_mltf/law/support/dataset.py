"""Constructing a training set from staged files."""

from __future__ import annotations

import importlib.util
import os
from pathlib import Path
from typing import TYPE_CHECKING

from bhive_mltf.data.build import construct as library
from bhive_mltf.files.lock import DirectoryLock
from bhive_mltf.files.records import Record

if TYPE_CHECKING:
    from bhive_mltf.law.tasks.dataset import ConvertNtuples, DatasetConstructorTask


def construct(task: DatasetConstructorTask, conversion: ConvertNtuples, directory: Path) -> None:
    """Build the set of `task` in `directory` and remove the staged files.

    Raises
    ------
    FilelistError : the list is missing, empty, or names files that do not exist.
    DataError and its kinds : the jets cannot make a training set.
    """
    with DirectoryLock(directory, wait_s=None):
        files = conversion.input_files()
        branches = list(conversion.get_branch_tasks().values())
        staged = [Path(branch.output().path) for branch in branches]
        if task.is_made():  # by a command that held the lock before
            _remove(staged)
            return
        conversion.run_branches([branch for branch in branches if not branch.complete()])
        parameters = {
            "chunk_size": task.chunk_size,
            "reference_flavour": task.reference_flavour,
            "seed": task.seed,
            "skip_bad_files": task.skip_bad_files,
            "weighting": task.weighting,
            "config": task.config_digest(),
        }
        # before the set can look complete; its generation is known only afterwards
        Record(parameters, generation="").write(directory)
        manifest = library.construct(
            task.load_config(),
            staged,
            directory,
            chunk_size=task.chunk_size,
            seed=task.seed,
            filelist=files,
            weighting=task.weighting,
            memory_mb=task.conversion_memory,
            threads=task.coffea_worker or os.cpu_count() or 1,
        )
        Record(parameters, generation=manifest.digest[:12]).write(directory)
        _show_weights(task, directory)
        _remove(staged)
    task.say(
        f"{task.dataset_version}: {manifest.accounting} -> {manifest.n_jets} jets in {len(manifest.shards)} shards"
    )


def _remove(paths: list[Path]) -> None:
    for path in paths:
        path.unlink(missing_ok=True)


def _show_weights(task: DatasetConstructorTask, directory: Path) -> None:
    """What weighted sampling makes of each label: in words, and as a figure where figures can be drawn."""
    from bhive_mltf.data.weighting.report import WeightingReport

    task.say(f"{WeightingReport.read(directory)[0].table()}\n")
    if importlib.util.find_spec("matplotlib") is not None:
        from bhive_mltf.evaluation.spectra import draw_spectra

        draw_spectra(directory)
