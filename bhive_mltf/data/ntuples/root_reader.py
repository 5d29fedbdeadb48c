"""ROOT trees and RNTuples as flat numpy columns: only the branches needed, in chunks of bounded size."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import uproot
from numpy.typing import NDArray

from bhive_mltf import compat
from bhive_mltf.data.manifest import content_id, remote_content_id
from bhive_mltf.data.ntuples.branch_types import ntuple_lists, tree_columns
from bhive_mltf.data.ntuples.filelist import is_remote
from bhive_mltf.errors import BhiveError, CorruptFileError, DataError, MissingBranchError, MissingTreeError, nearest
from bhive_mltf.files import mapping

_TREES = ("TTree", "TNtuple", "TNtupleD")
_NTUPLES = ("ROOT::RNTuple", "ROOT::Experimental::RNTuple")


@dataclass(frozen=True)
class Jagged:
    """A list of numbers per jet: flat values [S], offsets int64 [J+1]."""

    values: NDArray[Any]
    offsets: NDArray[np.int64]


@dataclass(frozen=True)
class Chunk:
    """Branches of the entries [start, stop): one number per jet, or a list of numbers per jet."""

    start: int
    stop: int
    scalars: dict[str, NDArray[Any]]
    jagged: dict[str, Jagged]


class RootTree:
    """Some branches of one tree, or fields of one RNTuple, of one file.

    path : of the file, as messages name it.
    content_id : 64 bits that identify the content of the file.
    n_entries : jets in the tree.
    jagged : those of the branches that hold a list per jet.
    """

    def __init__(self, path: str, tree: Any, branches: Sequence[str], content_id: int) -> None:  # noqa: ANN401 - uproot
        self.path = path
        self.content_id = content_id
        self.n_entries = int(tree.num_entries)
        self._tree = tree
        self._columns: Any
        if isinstance(tree, uproot.TTree):
            self._columns, self.jagged = tree_columns(tree, branches, path)
            for name in branches:
                edges = tree[name].entry_offsets
                if edges[-1] != self.n_entries or edges != sorted(edges):
                    raise ValueError(f"the branch `{name}` has {edges[-1]} entries, the tree {self.n_entries}")
        else:
            self._columns, self.jagged = list(branches), ntuple_lists(tree, branches, path)

    def step(self, max_jets: int, max_bytes: int) -> int:
        """Jets of a chunk: at most `max_jets`, of about `max_bytes` (uncompressed)."""
        if not self.n_entries:
            return max_jets
        if isinstance(self._tree, uproot.TTree):
            per_jet = sum(int(self._tree[name].uncompressed_bytes) for name in self._columns) / self.n_entries
            fitting = int(max_bytes / max(1.0, per_jet))
        else:
            with reading(self.path):
                fitting = int(self._tree.num_entries_for(max_bytes, self._columns))
        return max(1, min(max_jets, fitting))

    def chunks(self, step: int, start: int = 0, stop: int | None = None) -> Iterator[Chunk]:
        """The entries [start, stop) in order, `step` at a time; each basket is decompressed once."""
        stop = self.n_entries if stop is None else min(stop, self.n_entries)
        with reading(self.path):
            arrays = self._tree.iterate(
                self._columns, step_size=step, entry_start=start, entry_stop=stop, library="ak", how=dict
            )
            for low in range(start, stop, step):
                high = min(low + step, stop)
                yield self._chunk(next(arrays), low, high)

    def _chunk(self, arrays: dict[str, Any], start: int, stop: int) -> Chunk:
        scalars: dict[str, NDArray[Any]] = {}
        jagged: dict[str, Jagged] = {}
        for name in self._columns:
            layout = arrays[name].layout
            if len(layout) != stop - start:
                raise ValueError(f"the branch `{name}` has {len(layout)} entries instead of {stop - start}")
            if name in self.jagged:
                layout = layout.to_ListOffsetArray64(True)
                offsets = np.asarray(layout.offsets.data)
                jagged[name] = Jagged(np.asarray(layout.content.data)[: offsets[-1]], offsets)
            else:
                scalars[name] = np.asarray(layout.data)
        return Chunk(start, stop, scalars, jagged)


@contextmanager
def open_tree(path: str, treename: str, branches: Sequence[str]) -> Iterator[RootTree]:
    """The tree or RNTuple `treename` of a file, local or remote.

    Raises
    ------
    CorruptFileError
        Not a ROOT file, not closed by the job that wrote it, or not whole.
    MissingTreeError
        No such tree.
    MissingBranchError
        A branch is missing.
    DataError
        A branch of a type that cannot be read, a machine that does not let the file be read, or uproot below 5.
    """
    compat.require_root_reader(path)
    with _open_file(path) as file:
        tree = _find_tree(file, path, treename)
        with reading(path):
            available = set(tree.keys(recursive=True))
        missing = [name for name in branches if name not in available]
        if missing:
            raise MissingBranchError(
                f"the tree '{treename}' of '{path}' has no branch `{missing[0]}`"
                + (f" (nor {len(missing) - 1} others that the config names)" if missing[1:] else "")
                + f"; nearest: {', '.join(nearest(missing[0], available))}: correct the config or remove the file"
            )
        with reading(path):
            identity = remote_content_id(str(file.file.uuid), _size(file)) if is_remote(path) else content_id(path)
            opened = RootTree(path, tree, branches, identity)
        yield opened


@contextmanager
def _open_file(path: str) -> Iterator[Any]:
    with contextlib.ExitStack() as stack:
        with reading(path):
            if is_remote(path):
                file = stack.enter_context(uproot.open(path, array_cache=None))
            else:
                # Read, not mapped: what the disk refuses is an OSError then, and not a signal that kills the process.
                handle = stack.enter_context(Path(path).open("rb"))
                file = stack.enter_context(uproot.open(handle, array_cache=None, use_threads=False))
            size = _size(file)
            actual = size if is_remote(path) else Path(path).stat().st_size
            top = file.file.root_directory
            closed = top.fSeekKeys and top.fNbytesKeys and file.file.fSeekFree and file.file.fNbytesFree
        if not closed:
            raise CorruptFileError(
                f"the file '{path}' was not closed by the job that wrote it, jets may be missing: make it again, or "
                "pass --skip-bad-files to leave it out"
            )
        if actual < size:
            raise CorruptFileError(
                f"the file '{path}' is cut off: its header says {size} bytes, there are {actual}: copy it again, or "
                "pass --skip-bad-files to leave it out"
            )
        yield file


def _size(file: Any) -> int:  # noqa: ANN401 - uproot
    return int(file.file.fEND)


def _find_tree(file: Any, path: str, treename: str) -> Any:  # noqa: ANN401 - uproot
    with reading(path):
        kinds = {key.split(";")[0]: kind for key, kind in reversed(file.classnames().items())}
    kind = kinds.get(treename)
    if kind in (*_TREES, *_NTUPLES):
        with reading(path):
            return file[treename]
    found = ", ".join(sorted(name for name, kind in kinds.items() if kind in (*_TREES, *_NTUPLES))) or "none"
    if kind == "TChain":
        raise MissingTreeError(
            f"'{treename}' of '{path}' is a TChain, which holds no jets but the names of other files: put those files "
            "into the list"
        )
    there = f"has no tree '{treename}'" if kind is None else f"has a {kind} '{treename}', which is no tree"
    raise MissingTreeError(
        f"the file '{path}' {there}; its trees: {found}: correct the config's `treename` or remove the file"
    )


# What a reader raises that does not know how, whatever the file holds.
_OF_THE_READER = (NotImplementedError, NameError, TypeError)


@contextmanager
def reading(path: str) -> Iterator[None]:
    """Errors of the ROOT reader, of many kinds, as few.

    Raises
    ------
    CorruptFileError
        What the file holds is not readable as a whole.
    DataError
        The file may be whole: a package is missing, the reader does not know the type, or the machine is in trouble.
    """
    try:
        yield
    except BhiveError:
        raise
    except ImportError as error:
        raise DataError(
            f"'{path}' needs a package that is not installed ({error.name or 'fsspec-xrootd'}): pip install "
            "'bhive_mltf[xrootd]'"
        ) from error
    except MemoryError as error:
        raise DataError(
            f"'{path}' takes more memory than there is: give a lower --conversion-memory or fewer workers"
        ) from error
    except FileNotFoundError as error:
        raise DataError(f"the file '{path}' is not there any more: correct the list or bring it back") from error
    except OSError as error:
        raise mapping.cannot_read(path, error, "copy it again, or pass --skip-bad-files to leave it out") from error
    except _OF_THE_READER as error:
        raise DataError(
            f"uproot {uproot.__version__} cannot read '{path}' ({type(error).__name__}: {_short(error)}), which says "
            "nothing about the file: install a newer uproot, or remove the file from the list"
        ) from error
    except Exception as error:
        raise CorruptFileError(
            f"the file '{path}' cannot be read as a ROOT file ({type(error).__name__}: {_short(error)}): copy it "
            "again, or pass --skip-bad-files to leave it out"
        ) from error


def _short(error: Exception) -> str:
    return " ".join(str(error).split())[:160]
