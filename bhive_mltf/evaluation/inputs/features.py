"""The input features of a config by the names that histograms and figures have. Light: nothing is read."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from bhive_mltf.errors import ParameterError
from bhive_mltf.evaluation.discriminators import safe_name

if TYPE_CHECKING:
    from bhive_mltf.config import Group
    from bhive_mltf.data.schema import GroupSchema

COMBINED = "all"


@dataclass(frozen=True)
class InputFeature:
    """A column of a group.

    name : of its histograms and figures; `<group>_<column>` where two groups have a column of one name.
    position : in the group.
    """

    name: str
    group: str
    position: int


def features(groups: Iterable[Group | GroupSchema]) -> tuple[InputFeature, ...]:
    """The features of all groups, in order of storage."""
    groups = tuple(groups)
    times = Counter(column for group in groups for column in group.columns)
    return tuple(
        InputFeature(column if times[column] == 1 else f"{group.name}_{column}", group.name, position)
        for group in groups
        for position, column in enumerate(group.columns)
    )


def figure_names(
    features: Sequence[InputFeature], labels: Sequence[str], *, ylog: bool, weighted: bool
) -> dict[str, str]:
    """Figures by key `<feature>_<label>`: paths `<feature>/<label>[_weight][_ylog].png`, `all` for all labels together.

    A config with a truth label called `all` gets no figure of all labels.
    """
    ending = f"{'_weight' if weighted else ''}{'_ylog' if ylog else ''}.png"
    return {
        f"{feature.name}_{label}": f"{safe_name(feature.name)}/{safe_name(label)}{ending}"
        for feature in features
        for label in dict.fromkeys((COMBINED, *labels))
    }


def check_parameters(n_bins: int, n_workers: int) -> None:
    """ParameterError for a number of bins or of processes that cannot be."""
    if n_bins < 1:
        raise ParameterError(f"--Nbins {n_bins}: a histogram has one bin or more; the default is 50")
    count_workers(n_workers)


def count_workers(n_workers: int) -> int:
    """Processes for a parameter `n_workers`: -1 means one per core but one.

    Raises
    ------
    ParameterError
        Neither positive nor -1.
    """
    if n_workers < 1 and n_workers != -1:
        raise ParameterError(f"--n-workers {n_workers}: give a number of processes, or -1 for one per core but one")
    return n_workers if n_workers > 0 else max(1, (os.cpu_count() or 2) - 1)
