"""What was made of what, as trees; for `bhive-mltf results --lineage`."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console

if TYPE_CHECKING:
    from bhive_mltf.training.provenance.lineage import Direction, Lineage

AT_MOST = 6  # nodes of one kind below another


def show(folder: Path, what: str, console: Console) -> None:
    """Print the lineage of everything below a folder; of one thing in both directions.

    what : a path, a run id, a digest or a content id, or the beginning or end of one; empty for everything.

    Raises
    ------
    ParameterError : nothing there is called so.
    """
    from bhive_mltf.training.provenance import lineage

    found = lineage.read(folder)
    if not what:
        for name in found.first():
            _print(_lines(found, name, "forth", sources=found.next_to(name, "back")), console)
        return
    for name in found.find(what):
        console.print(f"[bold]made of[/bold] ({found.nodes[name].kind})")
        _print(_lines(found, name, "back"), console)
        console.print("[bold]went into[/bold]")
        _print(_lines(found, name, "forth"), console)


def _print(lines: Iterator[str], console: Console) -> None:
    for line in lines:
        console.print(line, markup=False)


def _lines(
    found: Lineage, name: str, direction: Direction, depth: int = 0, sources: Sequence[str] = ()
) -> Iterator[str]:
    """A node and what lies in one direction of it, a line each; lines are never broken, since paths are copied."""
    node = found.nodes.get(name)
    yield "  " * depth + (f"{node.kind}: {node.title}" if node else name)
    for source in sources[:AT_MOST]:
        yield "  " * depth + f"  of {found.nodes[source].title}"
    near = found.next_to(name, direction)
    for one in near[:AT_MOST]:
        yield from _lines(found, one, direction, depth + 1)
    for left in (len(sources) - AT_MOST, len(near) - AT_MOST):
        if left > 0:
            yield "  " * depth + f"  and {left} more"
