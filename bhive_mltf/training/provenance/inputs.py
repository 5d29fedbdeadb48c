"""Whether the data sets of a recorded training are still what they were."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from bhive_mltf.data.dataset import Dataset, verify
from bhive_mltf.data.manifest import Manifest, content_id
from bhive_mltf.data.ntuples.filelist import is_remote
from bhive_mltf.errors import BhiveError
from bhive_mltf.training.build import open_training_set, open_validation_set
from bhive_mltf.training.plan import TrainingPlan


def problems(recorded: Mapping[str, Mapping[str, Any]], plan: TrainingPlan) -> list[str]:
    """What differs between the data sets of a run as they were recorded and as they lie there now, a sentence each.

    Parameters
    ----------
    recorded : `digest` and `sources` by context, as `data/<context>.json` of the run have them.
    plan : of the training; says where the sets lie.
    """
    found = []
    for context, opened in (("training", open_training_set), ("validation", open_validation_set)):
        known = recorded.get(context)
        if known is None:
            continue
        try:
            dataset = opened(plan)
            wrong = list(_of_one(known, dataset)) if dataset is not None else []
        except BhiveError as error:
            wrong = [f"{error}; made of {_sources(known)}"]
        # what a set that is built again would be made of
        found += [f"{context} set: {text}" for text in (*wrong, *(root_problems(known) if wrong else ()))]
    return found


def _of_one(recorded: Mapping[str, Any], dataset: Dataset) -> list[str]:
    manifest = dataset.manifest
    if manifest.digest != recorded["digest"]:
        changed = list(_changed(recorded, manifest))
        return [f"{dataset.directory} has the digest {manifest.digest}, the run used {recorded['digest']}", *changed]
    verify(dataset)
    return []


def _changed(recorded: Mapping[str, Any], manifest: Manifest) -> Iterator[str]:
    """Which ROOT files are others."""
    before = {source["content_id"]: source["path"] for source in recorded.get("sources", [])}
    now = {source.content_id: source.path for source in manifest.sources}
    yield from (
        f"it was made of {path} (content {name}), and is not now" for name, path in before.items() if name not in now
    )
    yield from (
        f"it is made of {path} (content {name}), and was not then" for name, path in now.items() if name not in before
    )


def root_problems(recorded: Mapping[str, Any]) -> list[str]:
    """ROOT files of a recorded data set that are gone or hold other bytes; remote ones are not read."""
    found = []
    for source in recorded.get("sources", []):
        path, identity = source["path"], source["content_id"]
        if is_remote(path):
            continue
        try:
            now = f"{content_id(path):016x}"
        except (OSError, BhiveError) as error:
            found.append(f"the ROOT file {path} cannot be read ({error})")
            continue
        if now != identity:
            found.append(f"the ROOT file {path} holds other bytes than then: content {now}, the run used {identity}")
    return found


def _sources(recorded: Mapping[str, Any]) -> str:
    paths = [str(source["path"]) for source in recorded.get("sources", [])]
    return ", ".join(paths[:3]) + (f" and {len(paths) - 3} more" if len(paths) > 3 else "") or "unknown files"
