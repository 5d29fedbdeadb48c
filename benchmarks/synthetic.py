"""JetClass files for the benchmarks where no others are at hand.

python benchmarks/synthetic.py DIR [--jets 28000]
"""

from __future__ import annotations

import argparse
import shutil
import tempfile
from collections.abc import Sequence
from pathlib import Path

from bhive_mltf.testing.jetclass_jets import PROCESSES
from bhive_mltf.testing.jets import write_jetclass

SEED = 1
LARGEST_FILE = 10_000


def distinct_copies(files: Sequence[str], copies: int, folder: Path) -> list[str]:
    """Each file several times; bytes after its end, which ROOT does not read, make the contents differ."""
    folder.mkdir(parents=True, exist_ok=True)
    found = []
    for path in map(Path, files):
        for number in range(copies):
            copy = folder / f"{path.stem}_copy{number}.root"
            shutil.copyfile(path, copy)
            with copy.open("ab") as handle:
                handle.write(number.to_bytes(8, "little"))
            found.append(str(copy))
    return found


def write_jets(n_jets: int, folder: Path) -> list[str]:
    """JetClass files of all labels with `n_jets` jets together: a few made, the others their distinct copies."""
    per_file = min(LARGEST_FILE, n_jets // len(PROCESSES))
    with tempfile.TemporaryDirectory() as made:
        files = [
            str(write_jetclass(Path(made) / f"{process}_000.root", per_file, SEED, label))
            for label, process in PROCESSES.items()
        ]
        return distinct_copies(files, n_jets // (per_file * len(files)), folder)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="appears when all files are written")
    parser.add_argument("--jets", type=int, default=28_000)
    arguments = parser.parse_args()
    arguments.folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=arguments.folder.parent) as place:
        write_jets(arguments.jets, Path(place) / "files")
        (Path(place) / "files").rename(arguments.folder)


if __name__ == "__main__":
    main()
