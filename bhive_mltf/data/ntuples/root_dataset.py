"""ROOT files as a training set, without a directory that the user has to construct and keep.

The order of jets is a random permutation of all files, so that a window of the loader needs every basket of every
file; and which jets are accepted, and with what weight, is known only when each has been read. Reading the files in
every epoch would therefore give other batches or cost a whole conversion per window. Instead the files are converted
once, at first touch, to a training set in a scratch directory, with the bounded memory of any construction. Jets,
order and digest are those of the constructed set: a study may go on with it later. Processes of one machine that read
the same files with the same config share the scratch set; it goes with the last of them, however that ends.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import logging
import os
import shutil
import tempfile
import weakref
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from bhive_mltf import __version__
from bhive_mltf.config import Config
from bhive_mltf.data.build import construct as construction
from bhive_mltf.data.build import set_writer
from bhive_mltf.data.build.stage import stage_many
from bhive_mltf.data.dataset import Dataset, open_dataset
from bhive_mltf.data.manifest import Manifest
from bhive_mltf.data.ntuples.jobs import ReadOptions, StageJob, staged_name
from bhive_mltf.errors import DataError, FilelistError, ParameterError
from bhive_mltf.files import disk
from bhive_mltf.files.lock import DirectoryLock

logger = logging.getLogger(__name__)

_USERS = ".users"


class RootDataset(Dataset):
    """ROOT files, read as any training set; made by `open_root`.

    Pickled copies, in loader workers say, read the same scratch set and do not keep it: they must not outlive the
    original. `close`, the end of a `with` block or the end of the process gives it back.
    """

    def __init__(self, directory: Path, manifest: Manifest, users: int) -> None:
        super().__init__(directory, manifest)
        self._finalizer = weakref.finalize(self, _give_back, directory, users, os.getpid())

    def __reduce__(self) -> tuple[Any, ...]:
        return Dataset, (self.directory, self.manifest)

    def close(self) -> None:
        """Give the scratch set back; the last process to do so removes it."""
        self._finalizer()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def open_root(
    config: Config,
    files: Sequence[str],
    *,
    seed: int,
    chunk_size: int = 100_000,
    workers: int = 1,
    skip_bad_files: bool = False,
    weighting: str = "reference",
    scratch: Path | None = None,
    options: ReadOptions | None = None,
) -> RootDataset:
    """Open ROOT files as a training set; the first process to do so converts them.

    Parameters
    ----------
    files : paths, as `read_filelist` gives them.
    seed, chunk_size, skip_bad_files, weighting : as for the construction of a set; with the same ones, the same set.
    workers : processes that convert.
    scratch : where the scratch set goes; default: `$TMPDIR`, else the system's folder for temporary files. It has to
        hold the jets twice while they are converted, about 4 times the size of the ROOT files.

    Raises
    ------
    FilelistError, DataError, ParameterError
        As for a construction; DataError when the scratch folder is full or cannot be used.
    """
    if not files:
        raise FilelistError("no input files: name one ROOT file or more")
    arrow = config.model_copy(update={"dataset": "ArrowDataset"})
    construction.check_parameters(arrow, chunk_size)
    options = options or ReadOptions()
    folder = _scratch_folder(scratch)
    _sweep(folder)
    inputs = staged_name(arrow, files, seed, skip_bad_files=skip_bad_files), options, chunk_size, weighting, __version__
    directory = folder / hashlib.sha256(repr(inputs).encode()).hexdigest()[:32]
    users = _join(directory)
    try:
        with disk.writing(folder), DirectoryLock(directory, wait_s=None):
            if not (directory / set_writer.FILES).exists():
                logger.info("converting %d ROOT files to a scratch set in %s", len(files), directory)
                jobs = [
                    StageJob(arrow, (path,), directory / "staged" / f"{i}.arrow", seed, skip_bad_files, options)
                    for i, path in enumerate(files)
                ]
                _build(jobs, directory, chunk_size=chunk_size, weighting=weighting, workers=workers)
        opened = open_dataset(directory, arrow)
    except BaseException:
        _give_back(directory, users, os.getpid())
        raise
    return RootDataset(directory, opened.manifest, users)


def _build(jobs: Sequence[StageJob], directory: Path, *, chunk_size: int, weighting: str, workers: int) -> None:
    staged = directory / "staged"
    shutil.rmtree(staged, ignore_errors=True)
    stage_many(jobs, workers)
    construction.construct(
        jobs[0].config,
        [job.target for job in jobs],
        directory,
        chunk_size=chunk_size,
        seed=jobs[0].seed,
        filelist=[path for job in jobs for path in job.paths],
        weighting=weighting,
    )
    shutil.rmtree(staged)


def _scratch_folder(scratch: Path | None) -> Path:
    """A folder that only this user can look into."""
    folder = Path(scratch or tempfile.gettempdir()) / f"bhive_mltf_{os.getuid()}"
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        owner = folder.stat().st_uid
    except OSError as error:
        raise DataError(f"'{folder}' cannot be made ({error.strerror}): set TMPDIR to a folder of yours") from error
    if owner != os.getuid():
        raise ParameterError(f"'{folder}' belongs to another user: set TMPDIR to a folder of yours")
    return folder


# Who uses a scratch set holds a shared lock on its file of users: the kernel drops it with the process.


def _join(directory: Path) -> int:
    """Become a user of a scratch set; the descriptor that holds the lock."""
    while True:
        directory.mkdir(exist_ok=True)
        # The last user may remove the directory at any moment before the lock is had.
        with contextlib.suppress(FileNotFoundError):
            users = os.open(directory / _USERS, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
            fcntl.flock(users, fcntl.LOCK_SH)
            try:
                if (directory / _USERS).stat().st_ino == os.fstat(users).st_ino:
                    return users
            except FileNotFoundError:
                pass
            os.close(users)


def _give_back(directory: Path, users: int, owner: int) -> None:
    """Stop using a scratch set, and remove it when nobody else does; in a forked copy, nothing."""
    if os.getpid() != owner:
        return
    with _alone(users) as alone:
        if alone:
            shutil.rmtree(directory, ignore_errors=True)
    os.close(users)


@contextlib.contextmanager
def _alone(users: int) -> Iterator[bool]:
    try:
        fcntl.flock(users, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        yield False
    else:
        yield True


def _sweep(folder: Path) -> None:
    """Remove the scratch sets of processes that were killed."""
    for file in folder.glob(f"*/{_USERS}"):
        with contextlib.suppress(OSError):
            users = os.open(file, os.O_RDWR | os.O_CLOEXEC)
            _give_back(file.parent, users, os.getpid())
