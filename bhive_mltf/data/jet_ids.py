"""What the ids of jets mean: which file, and what of it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from bhive_mltf.data.dataset import Dataset

FILE_AND_ENTRY, SHARD_AND_ROW = "file and entry", "shard and row"


def describe_files(dataset: Dataset) -> dict[str, Any]:
    """What jet ids mean, and path and content id of each index: plain JSON values."""
    manifest = dataset.manifest
    if manifest.jet_ids:
        files = [(source.path, source.content_id) for source in manifest.sources]
    else:
        files = [(shard.file, shard.checksum) for shard in manifest.shards]
    return {
        "jet_id": FILE_AND_ENTRY if manifest.jet_ids else SHARD_AND_ROW,
        "files": {str(i): {"path": str(path), "content_id": str(content)} for i, (path, content) in enumerate(files)},
    }
