"""Errors of the package.

BhiveError
├── ConfigError (ValueError)          a config file says something that cannot be
│   ├── UnknownKeyError               a key that no part of the config has
│   ├── ExpressionError               a custom feature or truth condition outside the grammar
│   └── ProfileError                  a facility profile, or an option of a job, that cannot be
├── FilelistError (ValueError)        a list of input files that cannot be used
├── ParameterError (ValueError)       a parameter of a task out of its range
│   └── RecordMismatchError           a parameter differs from what the directory was made with
├── DataError (ValueError)            jets that cannot be used as asked
│   ├── MissingBranchError            a branch that an input file does not have
│   ├── MissingTreeError              an input file without the tree that the config names
│   ├── CorruptFileError              a file that cannot be read whole
│   ├── DiskError (OSError)           a place that cannot be written
│   └── DatasetMismatchError          a directory that belongs to other files or another config
├── ModelError (ValueError)           a model that does not fit the config or does not exist
├── TrainingError (RuntimeError)      a training that cannot go on
│   ├── CheckpointError               a checkpoint that cannot be written, read or used
│   ├── NonFiniteLossError            a loss that is NaN or infinite
│   └── RankFailedError               a rank that died
├── SlurmError (RuntimeError)         the batch system does not do what is asked
│   ├── SubmissionError               a job that was not taken
│   ├── QueryFailedError              no answer; says nothing about any job
│   └── JobFailedError                a job that ended without its result
├── LockedError (RuntimeError)        an output directory in use by another process
└── TrackingError (RuntimeError)      a tracking store that cannot be reached; never ends a training

Every message is one sentence: what is wrong, where, what was there, what to do.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class BhiveError(Exception):
    """Base of all errors that a user can cause."""


class ConfigError(BhiveError, ValueError):
    """A config file says something that cannot be."""


class UnknownKeyError(ConfigError):
    """A key that no part of the config has."""


class ExpressionError(ConfigError):
    """A custom feature or truth condition outside the expression grammar."""


class ProfileError(ConfigError):
    """A facility profile, or an option of a job, that cannot be."""


class FilelistError(BhiveError, ValueError):
    """A list of input files that cannot be used."""


class ParameterError(BhiveError, ValueError):
    """A parameter of a task out of its range."""


class RecordMismatchError(ParameterError):
    """A parameter differs from the value that the directory was made with."""


class DataError(BhiveError, ValueError):
    """Jets that cannot be used as asked."""


class MissingBranchError(DataError):
    """A branch that an input file does not have."""


class MissingTreeError(DataError):
    """A file without the tree that the config names."""


class CorruptFileError(DataError):
    """A file that cannot be read whole."""


class DiskError(DataError, OSError):
    """A place that cannot be written: the disk is full or read-only, a permission is missing.

    number : the `errno` of the system, 0 if it gave none.
    """

    def __init__(self, message: str, number: int = 0) -> None:
        super().__init__(message)
        self.errno = number

    def __str__(self) -> str:
        return str(self.args[0])

    def __reduce__(self) -> tuple[type[DiskError], tuple[str, int]]:
        return type(self), (str(self), self.errno or 0)


class DatasetMismatchError(DataError):
    """A dataset directory that belongs to other files or to another config."""


class ModelError(BhiveError, ValueError):
    """A model that does not fit the config, or does not exist."""


class TrainingError(BhiveError, RuntimeError):
    """A training that cannot go on."""


class CheckpointError(TrainingError):
    """A checkpoint that cannot be written, read or used."""


class NonFiniteLossError(TrainingError):
    """A loss that is NaN or infinite."""


class RankFailedError(TrainingError):
    """A rank that died."""


class SlurmError(BhiveError, RuntimeError):
    """The batch system does not do what is asked."""


class SubmissionError(SlurmError):
    """A job that was not taken."""


class QueryFailedError(SlurmError):
    """The batch system did not answer; this says nothing about any job."""


class JobFailedError(SlurmError):
    """A job that ended without its result."""


class LockedError(BhiveError, RuntimeError):
    """An output directory in use by another process."""


class TrackingError(BhiveError, RuntimeError):
    """A tracking store that cannot be reached."""


def nearest(name: str, valid: Iterable[str], limit: int = 5) -> list[str]:
    """The valid names most like `name`, best first; all of them, sorted, when none is alike."""
    names = sorted(set(valid))
    return difflib.get_close_matches(name, names, n=limit, cutoff=0.5) or names[: 2 * limit]
