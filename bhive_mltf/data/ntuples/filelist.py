"""Lists of input files, one ROOT path or XRootD address per line, and the process of the config each belongs to."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from bhive_mltf.errors import FilelistError
from bhive_mltf.files.text import read_text

DEFAULT = ("default",)


def is_remote(path: str) -> bool:
    """True for an address such as `root://host//store/file.root`."""
    return "://" in path


def read_filelist(path: str | Path) -> tuple[str, ...]:
    """The files named in a list, in its order.

    Blank lines and lines that start with `#` count for nothing; `~` and `$NAME` are expanded; a relative path is
    looked up from the working directory first, then from the folder of the list.

    Returns
    -------
    absolute paths; remote addresses as they stand.

    Raises
    ------
    FilelistError
        The list is missing or names no file, a file is missing, or one is named twice.
    """
    path = Path(os.path.expandvars(path)).expanduser()
    try:
        text = read_text(path)
    except (OSError, UnicodeDecodeError) as error:
        raise FilelistError(
            f"cannot read the list of files '{path}' ({_reason(error)}): give --filelist a text file with one ROOT "
            "file per line"
        ) from error
    files: list[str] = []
    lines: dict[str, int] = {}
    for number, line in enumerate(text.splitlines(), start=1):
        name = line.strip()
        if not name or name.startswith("#"):
            continue
        file = _locate(name, path, number)
        identity = file if is_remote(file) else os.path.realpath(file)
        if identity in lines:
            raise FilelistError(
                f"'{path}' names '{name}' twice, in lines {lines[identity]} and {number}: its jets would count double; "
                "remove one of the lines"
            )
        lines[identity] = number
        files.append(file)
    if not files:
        raise FilelistError(f"the list '{path}' names no file: write one ROOT file per line")
    return tuple(files)


def _locate(name: str, filelist: Path, line: int) -> str:
    if is_remote(name):
        return name
    expanded = Path(os.path.expandvars(name)).expanduser()
    for folder in (Path.cwd(), filelist.resolve().parent):
        candidate = Path(os.path.normpath(folder / expanded))
        if candidate.is_file():
            return str(candidate)
    raise FilelistError(
        f"line {line} of '{filelist}' names '{name}', which does not exist (looked up from the working directory and "
        "from the folder of the list): correct or remove the line"
    )


def _reason(error: OSError | UnicodeDecodeError) -> str:
    return error.strerror or "no reason given" if isinstance(error, OSError) else "not a text file"


def match_process(path: str, processes: Sequence[str]) -> int:
    """Index of the process whose name is a part of `path`.

    The component of the path nearest to the file decides. Inside it the first process in the config's order wins,
    unless a longer name that contains it matches too (`TTBarLep` over `TTBar`, whatever their order).

    Raises
    ------
    FilelistError
        No process matches.
    """
    if tuple(processes) == DEFAULT:
        return 0
    for component in reversed(path.replace("\\", "/").split("/")):
        matching = [name for name in processes if name in component]
        if matching:
            longer = [name for name in matching if matching[0] in name]
            return list(processes).index(max(longer, key=len))
    raise FilelistError(
        f"the file '{path}' matches no process of the config ({', '.join(processes)}): add its process to the key "
        "`processes`, or remove it from the list"
    )


def one_file_per_process(paths: Sequence[str], processes: Sequence[str]) -> tuple[str, ...]:
    """The first file of each process, in the order of `paths`: what `--debug` reads."""
    first: dict[int, str] = {}
    for path in paths:
        first.setdefault(match_process(path, processes), path)
    return tuple(first.values())
