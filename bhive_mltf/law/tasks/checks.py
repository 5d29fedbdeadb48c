"""What can be seen to be wrong before anything runs."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from bhive_mltf.errors import DatasetMismatchError, FilelistError, ParameterError

if TYPE_CHECKING:
    from bhive_mltf.law.tasks.inference import EvaluationBase
    from bhive_mltf.law.tasks.training import TrainingTask


def refuse_small_numbers(**parameters: tuple[int, int]) -> None:
    """ParameterError for a parameter `name=(value, least)` below its least value."""
    for name, (value, least) in parameters.items():
        if value < least:
            raise ParameterError(f"--{name.replace('_', '-')} {value}: it must be {least} or more")


def refuse_contradictions(task: TrainingTask) -> None:
    """ParameterError for commands to a training that exclude each other, or leave nothing to train."""
    if task.restart and task.resume_epoch:
        raise ParameterError(
            f"--restart True begins anew and --resume-epoch {task.resume_epoch} keeps epochs: give one of them"
        )
    if task.nodes > 1 and not task.slurm:
        raise ParameterError(
            f"--nodes {task.nodes} without a facility profile: this command starts ranks on its own machine only, also "
            "inside an allocation of SLURM: add --slurm PROFILE, or leave --nodes at 1"
        )
    if task.val_dataset_version:
        _refuse_needless(task)
    elif task.val_filelist and not task.effective("val_dataset_version"):
        raise ParameterError(f"--val-filelist {task.val_filelist}: give the set a --val-dataset-version too")
    if task.epochs == 0 and not task.effective("use_iterations"):
        raise ParameterError(
            "--epochs 0 trains nothing: give 1 or more, or --use-iterations True with --total-iterations"
        )


def _refuse_needless(task: TrainingTask) -> None:
    version = task.val_dataset_version
    if version == task.dataset_version:
        raise ParameterError(
            f"--val-dataset-version and --dataset-version are both '{version}': leave the former out to split the "
            "training set, or give the validation set a version of its own"
        )
    if task.train_val_split != task.defaults(["train_val_split"])["train_val_split"]:
        raise ParameterError(
            f"--train-val-split {task.train_val_split} has no meaning with --val-dataset-version {version}, where all "
            "jets of the training set train: give one of them"
        )


PRECISIONS = ("float32", "float64")


def refuse_unknown_precision(name: str) -> None:
    """ParameterError for a precision that inference cannot compute in."""
    if name not in PRECISIONS:
        raise ParameterError(f"--testing-precision {name} does not exist: choose one of {', '.join(PRECISIONS)}")


def refuse_two_lists_for_one_version(task: EvaluationBase) -> None:
    """W44: one dataset version belongs to one list of files.

    Upstream gives training and test set the same default version, so that the training set can silently become the
    test set.

    Raises
    ------
    DatasetMismatchError : both versions are equal, and the lists differ.
    """
    if task.dataset_version != task.test_dataset_version or not task.test_filelist:
        return
    if task.filelist == task.test_filelist or (task.filelist and same_files(task.filelist, task.test_filelist)):
        return
    if not task.filelist and manifest_files(task.test_dataset().local_path()):
        return  # the recorded list decides, in DatasetConstructorTask
    raise DatasetMismatchError(
        f"--dataset-version and --test-dataset-version are both '{task.dataset_version}', but --filelist is "
        f"'{task.filelist}' and --test-filelist is '{task.test_filelist}': give the test set a version of its own"
    )


def refuse_other_files(files: Callable[[], tuple[str, ...]], filelist: str, directory: str) -> None:
    """W44: a dataset directory belongs to the list that its manifest records.

    Raises
    ------
    DatasetMismatchError : `files()`, those of `filelist`, are others than those that the set in `directory` was made
        from.
    """
    recorded = manifest_files(directory)
    if not recorded:
        return
    try:
        asked = files()
    except FilelistError:
        return  # a finished set does not need its list any more
    missing, new = sorted(set(recorded) - set(asked)), sorted(set(asked) - set(recorded))
    if missing or new:
        example = f"'{new[0]}' is not among them" if new else f"'{missing[0]}' is not in the list"
        raise DatasetMismatchError(
            f"{directory} was made from {len(recorded)} other files than the {len(asked)} of --filelist '{filelist}' "
            f"({example}): give this list another dataset version"
        )


def manifest_files(directory: str) -> tuple[str, ...]:
    """The files that a finished dataset was made from; empty when that is not recorded."""
    from bhive_mltf.data.manifest import FILE_NAME, Manifest

    if not (Path(directory) / FILE_NAME).exists():
        return ()
    manifest = Manifest.read(Path(directory))
    return () if manifest.derived else tuple(manifest.filelist)


def read(filelist: str) -> tuple[str, ...]:
    """The files of a list."""
    from bhive_mltf.data.ntuples.filelist import read_filelist

    return read_filelist(filelist)


def same_files(one: str, other: str) -> bool:
    """True when two lists name the same files; lists that cannot be read are compared by their path."""
    try:
        return sorted(read(one)) == sorted(read(other))
    except FilelistError:
        return os.path.realpath(one) == os.path.realpath(other)
