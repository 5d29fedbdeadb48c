"""ROOT trees as flat numpy columns: only the branches needed, in chunks of bounded size."""

from __future__ import annotations

import contextlib
import itertools
import mmap
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import uproot
import uproot.source.file
from numpy.typing import NDArray

from bhive_mltf.data.manifest import content_id, remote_content_id
from bhive_mltf.data.ntuples.baskets import BranchReader, simple_layout
from bhive_mltf.data.ntuples.filelist import is_remote
from bhive_mltf.data.ntuples.lists import Indices, PackedLists
from bhive_mltf.errors import BhiveError, CorruptFileError, DataError, MissingBranchError, nearest


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
    jagged: dict[str, Jagged | PackedLists]


class RootTree:
    """One tree of one file.

    path : of the file, as messages name it.
    content_id : 64 bits that identify the content of the file.
    n_entries : jets in the tree.
    jagged : those of the branches that hold a list per jet.
    """

    def __init__(
        self,
        path: str,
        branches: Mapping[str, Any],
        tree: Any,  # noqa: ANN401 - uproot
        content_id: int,
        content: memoryview | None,
    ) -> None:
        self.path = path
        self.content_id = content_id
        self._tree = tree
        self._branches = branches
        self.n_entries = int(tree.num_entries)
        self.jagged = frozenset(name for name in branches if self._is_jagged(name))
        self._edges = {name: branch.entry_offsets for name, branch in branches.items()}
        for name, edges in self._edges.items():
            if edges[-1] != self.n_entries or edges != sorted(edges):
                raise ValueError(f"the branch `{name}` has {edges[-1]} entries, the tree {self.n_entries}")
        self._readers = {} if content is None else _readers(branches, self._edges, content)
        self._sizes = {name: int(branch.uncompressed_bytes) for name, branch in branches.items()}

    def _is_jagged(self, branch: str) -> bool:
        interpretation = self._branches[branch].interpretation
        if isinstance(interpretation, uproot.AsJagged):
            return True
        if isinstance(interpretation, uproot.AsDtype) and not interpretation.inner_shape:
            return False
        raise DataError(
            f"the branch `{branch}` of '{self.path}' is of type {self._branches[branch].typename}, which is neither a "
            "number nor a list of numbers per jet: remove it from the config"
        )

    def edges(self, max_jets: int, max_bytes: int) -> list[int]:
        """Where chunks of at most `max_jets` and about `max_bytes` (uncompressed) begin, and where the last one ends.

        They begin where baskets of the largest branch do, as far as that leaves chunks of half the size or more.
        """
        largest = max(self._sizes, key=lambda name: self._sizes[name])
        per_jet = max(1.0, sum(self._sizes.values()) / max(1, self.n_entries))
        step = int(max(1, min(max_jets, max_bytes / per_jet)))
        baskets = np.asarray(self._edges[largest], np.int64)
        edges = [0]
        while edges[-1] < self.n_entries:
            limit = edges[-1] + step
            basket = int(baskets[np.searchsorted(baskets, limit, side="right") - 1])
            edges.append(min(basket if basket >= limit - step // 2 else limit, self.n_entries))
        return edges

    def chunks(self, max_jets: int, max_bytes: int) -> Iterator[Chunk]:
        """All entries in order, at most `max_jets` and about `max_bytes` (uncompressed) at a time."""
        for start, stop in itertools.pairwise(self.edges(max_jets, max_bytes)):
            yield self.read(start, stop)

    def read(self, start: int, stop: int) -> Chunk:
        """The entries [start, stop)."""
        scalars: dict[str, NDArray[Any]] = {}
        jagged: dict[str, Jagged | PackedLists] = {}
        indices = Indices()
        with reading(self.path):
            for name, reader in self._readers.items():
                raw, sizes = reader.read(start, stop)
                dtype = reader.layout.dtype
                if name in self.jagged:
                    index = indices.of(sizes, reader.layout)
                    index.check(raw)
                    jagged[name] = PackedLists(raw, index, dtype)
                else:
                    scalars[name] = raw.view(dtype).astype(dtype.newbyteorder("="))
            self._read_others(start, stop, scalars, jagged)
            found = {len(column) for column in scalars.values()} | {len(c.offsets) - 1 for c in jagged.values()}
            if found != {stop - start}:
                raise ValueError(f"the branches have {sorted(found)} entries instead of {stop - start}")
        return Chunk(start, stop, scalars, jagged)

    def _read_others(
        self, start: int, stop: int, scalars: dict[str, NDArray[Any]], jagged: dict[str, Jagged | PackedLists]
    ) -> None:
        """Branches that are not simple, and all those of remote files, by uproot."""
        names = [name for name in self._branches if name not in self._readers]
        if not names:
            return
        arrays = self._tree.arrays(names, entry_start=start, entry_stop=stop, library="ak", how=dict, array_cache=None)
        for name, array in arrays.items():
            if name in self.jagged:
                layout = array.layout.to_ListOffsetArray64(True)
                offsets = np.asarray(layout.offsets.data)
                jagged[name] = Jagged(np.asarray(layout.content.data)[: offsets[-1]], offsets)
            else:
                scalars[name] = np.asarray(array.layout.data)


def _readers(
    branches: Mapping[str, Any], edges: Mapping[str, Sequence[int]], content: memoryview
) -> dict[str, BranchReader]:
    """Readers of the simple branches."""
    readers = {}
    for name, branch in branches.items():
        layout = simple_layout(branch)
        if layout is not None:
            reader = BranchReader(content, branch, layout, edges[name])
            if layout.header is None or reader.has_offsets():
                readers[name] = reader
    return readers


@contextmanager
def open_tree(path: str, treename: str, branches: Sequence[str]) -> Iterator[RootTree]:
    """The tree of a file, local or remote.

    Raises
    ------
    CorruptFileError
        Not a ROOT file, or not whole.
    MissingBranchError
        No such tree, or a branch is missing.
    """
    with contextlib.ExitStack() as stack:
        file = stack.enter_context(_open_file(path))
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
            content = None if is_remote(path) else stack.enter_context(_mapped(path))
            opened = RootTree(path, {name: tree[name] for name in branches}, tree, identity, content)
        yield opened


@contextmanager
def _mapped(path: str) -> Iterator[memoryview]:
    with Path(path).open("rb") as handle:
        mapped = mmap.mmap(handle.fileno(), 0, access=mmap.ACCESS_READ)
    content = memoryview(mapped)
    try:
        yield content
    finally:
        # Views of it in the frames of an error close the file when they go.
        with contextlib.suppress(BufferError):
            content.release()
            mapped.close()


@contextmanager
def _open_file(path: str) -> Iterator[Any]:
    with reading(path):
        # A path may hold colons, which uproot takes for the name of a tree in texts.
        options = {} if is_remote(path) else {"handler": uproot.source.file.MemmapSource}
        file = uproot.open(path if is_remote(path) else Path(path), array_cache=None, **options)
    with file:
        with reading(path):
            size = _size(file)
            actual = size if is_remote(path) else Path(path).stat().st_size
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
        names = sorted({key.split(";")[0] for key, kind in file.classnames().items() if kind == "TTree"})
    if treename not in names:
        found = ", ".join(names) or "none"
        raise MissingBranchError(
            f"the file '{path}' has no tree '{treename}'; its trees: {found}: correct the config's `treename` or "
            "remove the file"
        )
    with reading(path):
        return file[treename]


@contextmanager
def reading(path: str) -> Iterator[None]:
    """Errors of the ROOT reader, of many kinds, as one: the file is not readable as a whole."""
    try:
        yield
    except (BhiveError, MemoryError):
        raise
    except ImportError as error:
        raise DataError(
            f"'{path}' needs a package that is not installed ({error.name or 'fsspec-xrootd'}): pip install "
            "'bhive_mltf[xrootd]'"
        ) from error
    except Exception as error:
        reason = " ".join(str(error).split())[:160]
        raise CorruptFileError(
            f"the file '{path}' cannot be read as a ROOT file ({type(error).__name__}: {reason}): copy it again, "
            "or pass --skip-bad-files to leave it out"
        ) from error
