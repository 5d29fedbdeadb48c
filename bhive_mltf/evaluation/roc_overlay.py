"""ROC curves of several runs in one figure, from their ROC directories."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from bhive_mltf.errors import DataError
from bhive_mltf.evaluation import figures
from bhive_mltf.evaluation.discriminators import safe_name

_MOST = 8


def draw(directories: Mapping[str, Path], output: Path) -> tuple[str, ...]:
    """One figure `roc_<process>_<label>` for each discriminator that all runs have, at most eight of the first process.

    Parameters
    ----------
    directories : what a run is called in the legend -> its directory of ROC curves.

    Returns
    -------
    Names of the PNG files in `output`, which is made.

    Raises
    ------
    DataError : the runs share no discriminator, or a directory is damaged.
    """
    areas = {name: _areas(directory) for name, directory in directories.items()}
    first, *others = areas.values()
    shared = [
        (process, label)
        for process, found in first.items()
        for label in found
        if all(label in other.get(process, {}) for other in others)
    ]
    if not shared:
        raise DataError(
            f"the runs share no ROC curve (those of {next(iter(directories.values()))} are of "
            f"{', '.join(first) or 'no process'}): compare runs of the same classes and test set"
        )
    # those of all processes together, where there are several
    process = "all" if any(name == "all" for name, _ in shared) else shared[0][0]
    wanted = [label for name, label in shared if name == process][:_MOST]
    output.mkdir(parents=True, exist_ok=True)
    made = []
    for label in wanted:
        curves = {name: (path, areas[name][process][label]) for name, path in directories.items()}
        made.append(_figure(curves, process, label, output))
    return tuple(made)


def _areas(directory: Path) -> dict[str, dict[str, dict[str, Any]]]:
    try:
        found: dict[str, dict[str, dict[str, Any]]] = json.loads((directory / "auc.json").read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise DataError(f"{directory} holds no ROC curves ({error}): run ROCCurveTask again") from error
    return found


def _figure(
    curves: Mapping[str, tuple[Path, Mapping[str, Any]]],
    process: str,
    label: str,
    output: Path,
) -> str:
    stem = f"roc_{safe_name(process)}_{label}"
    with figures.cms_style():
        figure, axes = figures.panel()
        for number, (name, (directory, entry)) in enumerate(curves.items()):
            try:
                mistag, efficiency, _ = np.load(directory / f"{stem}.npy", allow_pickle=False)
            except (OSError, ValueError) as error:
                raise DataError(f"'{directory / stem}.npy' cannot be read ({error}): run ROCCurveTask again") from error
            colour, line = figures.colour_and_line(number)
            title = f"{name}: {entry['auc']:.4f}" + (f" $\\pm$ {entry['error']:.4f}" if entry["error"] else "")
            axes.plot(efficiency, np.where(mistag > 0, mistag, np.nan), line, color=colour, lw=2.5, label=title)
        axes.set_yscale("log")
        axes.set_xlim(0, 1)
        axes.set_xlabel("signal efficiency")
        axes.set_ylabel("mis-id. rate")
        axes.legend(title=f"{figures.caption(process)}, {label}; AUC:", loc="upper left")
    return figures.save(figure, output, stem)
