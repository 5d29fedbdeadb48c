"""What can be seen to be wrong before anything runs."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

from bhive_mltf.errors import DatasetMismatchError, FilelistError, ParameterError


def refuse_small_numbers(**parameters: tuple[int, int]) -> None:
    """ParameterError for a parameter `name=(value, least)` below its least value."""
    for name, (value, least) in parameters.items():
        if value < least:
            raise ParameterError(f"--{name.replace('_', '-')} {value}: it must be {least} or more")


def refuse_two_lists_for_one_version(version: str, filelist: str, test_filelist: str, directory: str) -> None:
    """W44: one dataset version belongs to one list of files.

    Upstream gives training and test set the same default version, so that the training set can silently become the
    test set.

    Parameters
    ----------
    version : of both sets, in `directory`.

    Raises
    ------
    DatasetMismatchError : the lists differ.
    """
    if not test_filelist or filelist == test_filelist or (filelist and same_files(filelist, test_filelist)):
        return
    if not filelist and manifest_files(directory):
        return  # the recorded list decides, in DatasetConstructorTask
    raise DatasetMismatchError(
        f"--dataset-version and --test-dataset-version are both '{version}', but --filelist is '{filelist}' and "
        f"--test-filelist is '{test_filelist}': give the test set a version of its own"
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
