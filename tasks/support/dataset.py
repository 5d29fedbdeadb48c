"""Constructing a training set from staged files."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from bhive_mltf.data import construct as library
from bhive_mltf.errors import FilelistError
from bhive_mltf.files.lock import DirectoryLock
from bhive_mltf.files.records import Record

if TYPE_CHECKING:
    from tasks.dataset import ConvertNtuples, DatasetConstructorTask


def construct(task: DatasetConstructorTask, conversion: ConvertNtuples, directory: Path) -> None:
    """Build the set of `task` in `directory` and remove the staged files.

    Raises
    ------
    FilelistError : the list is missing, empty, or names files that do not exist.
    DataError and its kinds : the jets cannot make a training set.
    """
    files = conversion.input_files()
    staged = [Path(branch.output().path) for branch in conversion.get_branch_tasks().values()]
    if not staged:
        raise FilelistError(f"the list '{task.filelist}' names no file: write one ROOT file per line")
    with DirectoryLock(directory, wait_s=None):
        manifest = library.construct(
            task.load_config(), staged, directory, chunk_size=task.chunk_size, seed=task.seed, filelist=files
        )
        parameters = {
            "chunk_size": task.chunk_size,
            "reference_flavour": task.reference_flavour,
            "seed": task.seed,
            "skip_bad_files": task.skip_bad_files,
            "config": manifest.config_digest,
        }
        Record(parameters, generation=manifest.digest[:12]).write(directory)
    task.say(
        f"{task.dataset_version}: {manifest.accounting} -> {manifest.n_jets} jets in {len(manifest.shards)} shards"
    )
    for path in staged:
        path.unlink(missing_ok=True)
