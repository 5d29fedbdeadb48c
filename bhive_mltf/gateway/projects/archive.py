"""What an uploaded archive may hold. It is looked at without writing a file, in a process of its own (`inspect`).

An allow-list: regular files and folders with plain names, in limits of number and size. The tar extraction filter
`data` of the standard library refuses less: it accepts links, duplicates and names with newlines.
"""

from __future__ import annotations

import json
import os
import re
import resource
import shutil
import subprocess
import sys
import tarfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path, PurePosixPath
from types import SimpleNamespace
from typing import IO, TYPE_CHECKING, Any, Final, cast

from bhive_mltf.gateway.errors import ArchiveError, ProjectError
from bhive_mltf.gateway.projects import mlproject

if TYPE_CHECKING:
    # not in the process that inspects: what the settings import takes ten times as long as the inspection
    from bhive_mltf.gateway.settings import Limits

_CONTROL: Final = re.compile(r"[\x00-\x1f\x7f\\]")
_MEMORY_BYTES: Final = 512 * 2**20
_READ_BYTES: Final = 2**20


@dataclass(frozen=True)
class Contents:
    """What an archive holds.

    entry_points : of its `MLproject`, by name; empty without that file.
    environment : what that file asks for, see `MLproject`.
    """

    files: int
    bytes: int
    name: str = ""
    entry_points: dict[str, Any] = field(default_factory=dict)
    environment: str = ""


def check(path: Path, limits: Limits) -> Contents:
    """Inspect an archive in a process of its own, with limits of time and memory.

    Raises
    ------
    ArchiveError : it is no project; names the member.
    """
    command = [sys.executable, "-m", __name__, str(path), limits.model_dump_json()]
    kept = {name: value for name, value in os.environ.items() if name in ("PATH", "PYTHONPATH", "LANG")}
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, timeout=limits.inspection_s, env=kept, check=False
        )
    except subprocess.TimeoutExpired:
        raise ArchiveError(f"the archive could not be inspected within {limits.inspection_s:g} s") from None
    try:
        answer = json.loads(done.stdout)
    except ValueError:
        raise ArchiveError("the archive could not be inspected: it needs too much memory or time") from None
    if "error" in answer:
        raise ArchiveError(answer["error"])
    return Contents(**answer)


def inspect(path: Path, limits: Limits) -> Contents:
    """What an archive holds; ArchiveError when that is no project."""
    is_file: dict[str, bool] = {}
    folded: set[str] = set()
    files = total = 0
    text = None
    with _opened(path) as archive:
        for member in _members(archive):
            name = _checked_name(member, limits)
            if name.casefold() in folded:
                raise ArchiveError(f"the archive has {name!r} twice, or in two spellings that some disks cannot tell")
            is_file[name] = member.isfile()
            folded.add(name.casefold())
            if len(is_file) > limits.members:
                raise ArchiveError(f"the archive has more than {limits.members:,} members")
            total += member.size
            files += member.isfile()
            if total > limits.archive_bytes:
                raise ArchiveError(f"the files of the archive have more than {limits.archive_bytes:,} bytes")
            if name == mlproject.NAME and member.isfile():
                text = _text(archive, member)
    _check_parents(is_file, folded)
    if text is None:
        return Contents(files, total)
    try:
        project = mlproject.parse(text)
    except ProjectError as error:
        raise ArchiveError(str(error)) from None
    points = {one.name: one.as_dict() for one in project.entry_points.values()}
    return Contents(files, total, project.name, points, project.environment)


def read_text(path: Path, name: str, largest: int) -> str | None:
    """A text file of an inspected archive; None where it has none of this name.

    Raises
    ------
    ArchiveError : it is larger than `largest` bytes, or no text in UTF-8.
    """
    with _opened(path) as archive:
        for member in _members(archive):
            if member.name == name and member.isfile():
                return _text(archive, member, largest)
    return None


def unpack(path: Path, folder: Path, limits: Limits) -> None:
    """Unpack an inspected archive into an empty folder; it is inspected again, since files may change.

    Raises
    ------
    ArchiveError : it is no project.
    """
    inspect(path, limits)
    with _opened(path) as archive:
        for member in _members(archive):
            target = folder / _checked_name(member, limits)
            if member.isdir():
                target.mkdir(parents=True, exist_ok=True)
                continue
            target.parent.mkdir(parents=True, exist_ok=True)
            source = archive.extractfile(member)
            if source is None:
                raise ArchiveError(f"{member.name!r} cannot be read")
            with source, target.open("xb") as file:
                shutil.copyfileobj(source, file, _READ_BYTES)
            target.chmod(0o755 if member.mode & 0o100 else 0o644)


@contextmanager
def _opened(path: Path) -> Iterator[tarfile.TarFile]:
    try:
        with tarfile.open(path, "r:", encoding="utf-8", errors="strict") as archive:
            yield archive
    except (tarfile.TarError, EOFError, OSError, UnicodeError, ValueError) as error:
        if isinstance(error, ArchiveError):
            raise
        raise ArchiveError(f"the upload is not a tar archive that can be read ({type(error).__name__})") from None


def _members(archive: tarfile.TarFile) -> Iterator[tarfile.TarInfo]:
    while (member := archive.next()) is not None:
        yield member
        # the list of members would grow with the archive
        archive.members.clear()  # type: ignore[attr-defined]


def _checked_name(member: tarfile.TarInfo, limits: Limits) -> str:
    name = member.name
    shown = ascii(name[:80])
    if not (member.isreg() or member.isdir()) or member.issparse():
        raise ArchiveError(f"{shown} is neither a file nor a folder: links and devices are not taken")
    parts = name.split("/")
    try:
        size = len(name.encode("utf-8"))
    except UnicodeEncodeError:
        raise ArchiveError(f"{shown} is no name in UTF-8") from None
    if name.startswith("/") or any(part in ("", ".", "..") for part in parts):
        raise ArchiveError(f"{shown} is not a path below the project's folder")
    if _CONTROL.search(name):
        raise ArchiveError(f"{shown} has a backslash or a control character")
    if size > limits.path_bytes or len(parts) > limits.depth:
        raise ArchiveError(f"{shown} is longer than {limits.path_bytes} bytes or deeper than {limits.depth} folders")
    if member.isreg() and not 0 <= member.size <= limits.file_bytes:
        raise ArchiveError(f"{shown} has {member.size:,} bytes, more than the {limits.file_bytes:,} of a file")
    return name


def _check_parents(is_file: dict[str, bool], folded: set[str]) -> None:
    """No file is a folder too, and no folder is there in two spellings; unpacking would find that out too late."""
    spelled: dict[str, str] = {}
    for name in is_file:
        for parent in map(str, PurePosixPath(name).parents[:-1]):
            if is_file.get(parent) or spelled.setdefault(parent.casefold(), parent) != parent:
                raise ArchiveError(f"{parent!r} is a file and a folder, or a folder in two spellings")
            if parent.casefold() in folded and parent not in is_file:
                raise ArchiveError(f"{parent!r} is there in another spelling")


def _text(archive: tarfile.TarFile, member: tarfile.TarInfo, largest: int = mlproject.LARGEST_BYTES) -> str:
    if member.size > largest:
        raise ArchiveError(f"{member.name} is larger than {largest:,} bytes")
    file: IO[bytes] | None = archive.extractfile(member)
    try:
        return file.read().decode("utf-8") if file is not None else ""
    except UnicodeDecodeError:
        raise ArchiveError(f"{member.name} is no text in UTF-8") from None


def main() -> int:
    """Inspect the archive named first, within the limits given second; one JSON object on standard output."""
    path, limits = Path(sys.argv[1]), cast("Limits", SimpleNamespace(**json.loads(sys.argv[2])))
    resource.setrlimit(resource.RLIMIT_AS, (_MEMORY_BYTES, _MEMORY_BYTES))
    seconds = int(limits.inspection_s) + 1
    resource.setrlimit(resource.RLIMIT_CPU, (seconds, seconds))
    try:
        answer = asdict(inspect(path, limits))
    except ArchiveError as error:
        answer = {"error": str(error)}
    sys.stdout.write(json.dumps(answer))
    return 0


if __name__ == "__main__":
    sys.exit(main())
