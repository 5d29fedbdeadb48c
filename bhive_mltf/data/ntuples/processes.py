"""Which process of the config a file belongs to: one rule, used wherever it matters."""

from __future__ import annotations

from collections.abc import Sequence

from bhive_mltf.errors import FilelistError

DEFAULT = ("default",)


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
