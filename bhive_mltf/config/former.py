"""Configs as earlier versions had them, so that what was made then is recognised."""

from __future__ import annotations

from pathlib import Path
from typing import Final

from bhive_mltf.config.loader import own_folder
from bhive_mltf.config.schema import Config

_OFFLINE = ("TT", "QCD")
_LOST_TRACKS = ("TT", "sTB", "Zprime", "WtoTau", "WtoLNu-2Jets", "VBFH", "QCD", "NMSSM", "DY")

# Processes that shipped configs named beyond upstream's files of the same name.
FORMER_PROCESSES: Final[dict[str, tuple[str, ...]]] = {
    "offline_run3": _OFFLINE,
    "DeepJet_AK4": _OFFLINE,
    "part_run3": _OFFLINE,
    "UParT_v0_run3": _OFFLINE,
    "part_run3_lt": _LOST_TRACKS,
}


def as_recorded(config: Config, digest: str) -> Config | None:
    """The config as it was when something with this `dataset_digest` was made; None when it is another one.

    Parameters
    ----------
    config : as it is now.
    digest : that a training set, a training or a checkpoint recorded.
    """
    if digest == config.dataset_digest:
        return config
    candidates = [config]
    if Path(config.source).parent == own_folder() and config.name in FORMER_PROCESSES:
        candidates.append(config.model_copy(update={"processes": FORMER_PROCESSES[config.name], "known_as": ""}))
    for candidate in candidates:
        plain = candidate.model_copy(update={"known_as": ""})
        if digest == plain.dataset_digest:
            return plain
        if digest == plain.written_digest:
            return plain.model_copy(update={"known_as": digest})
    return None
