"""What was made of what below a folder of outputs: ROOT files -> training sets -> runs -> models, and back."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from bhive_mltf.data.manifest import FILE_NAME as MANIFEST
from bhive_mltf.data.manifest import Manifest
from bhive_mltf.errors import BhiveError, ParameterError
from bhive_mltf.files.records import read_object
from bhive_mltf.tracking.history.snapshot import Snapshot, of_directory

PREPROCESS = "preprocess.json"
_COMPARISON = "comparison.json"  # not in the copies that the MLflow model has of the other files
Kind = Literal["ROOT file", "data set", "run", "model"]
Direction = Literal["back", "forth"]


@dataclass(frozen=True)
class Node:
    """One thing of the lineage.

    title : how it is shown. keys : by which it is found: path, digest, content id, run id.
    """

    kind: Kind
    title: str
    keys: tuple[str, ...]


@dataclass
class Lineage:
    """Nodes by an id of their own, and what was made of what."""

    nodes: dict[str, Node] = field(default_factory=dict)
    made_of: dict[str, list[str]] = field(default_factory=dict)
    went_into: dict[str, list[str]] = field(default_factory=dict)

    def add(self, name: str, node: Node, *sources: str) -> None:
        """Add a node and what it was made of; a node that is there already stays."""
        self.nodes.setdefault(name, node)
        for source in sources:
            for table, key, value in ((self.made_of, name, source), (self.went_into, source, name)):
                if value not in table.setdefault(key, []):
                    table[key].append(value)

    def next_to(self, name: str, direction: Direction) -> list[str]:
        """What a node was made of, or went into, one step away."""
        return (self.made_of if direction == "back" else self.went_into).get(name, [])

    def find(self, what: str) -> list[str]:
        """Nodes that have `what` as a key, or else those of which a key begins or ends with it.

        Raises
        ------
        ParameterError : there is none.
        """
        exact = [name for name, node in self.nodes.items() if what in node.keys]
        like = [n for n, node in self.nodes.items() if any(k.startswith(what) or k.endswith(what) for k in node.keys)]
        if not (exact or like):
            raise ParameterError(
                f"nothing below the folder is called '{what}': give a path, a run id, a digest or a content id"
            )
        return exact or like

    def first(self) -> Iterator[str]:
        """Nodes that were made of nothing else here, data sets in place of their ROOT files."""
        for name, node in self.nodes.items():
            if node.kind == "data set" or (node.kind == "run" and not self.made_of.get(name)):
                yield name


def read(folder: Path) -> Lineage:
    """The lineage of all outputs below `folder`; what cannot be read is left out."""
    found = Lineage()
    for path in sorted((folder / "DatasetConstructorTask").glob(f"**/{MANIFEST}")):
        try:
            manifest = Manifest.read(path.parent)
        except BhiveError:
            continue
        sources = [{"path": source.path, "content_id": source.content_id} for source in manifest.sources]
        _add_set(found, manifest.digest, path.parent, sources, manifest.n_jets)
    for path in sorted((folder / "TrainingTask").glob("**/plan.json")):
        _add_training(found, of_directory(path.parent))
    for path in sorted((folder / "ExportTask").glob(f"**/{_COMPARISON}")):
        training = read_object(path.with_name(PREPROCESS)).get("training", {}).get("directory", "")
        exported = path.parent / "model.onnx"
        found.add(str(exported), Node("model", f"{exported} (ONNX)", (str(exported), str(path.parent))), training)
    return found


def _add_set(found: Lineage, digest: str, directory: Path, sources: list[dict[str, Any]], n_jets: int | None) -> None:
    jets = f", {n_jets} jets" if n_jets is not None else ""
    node = Node("data set", f"{directory} (digest {digest[:12]}{jets})", (str(directory), digest))
    for source in sources:
        identity = f"content {source['content_id']}"
        root = Node("ROOT file", f"{source['path']} ({identity})", (str(source["path"]), str(source["content_id"])))
        found.add(identity, root)
    found.add(digest, node, *(f"content {source['content_id']}" for source in sources))


def _add_training(found: Lineage, run: Snapshot) -> None:
    directory = run.directory
    assert directory is not None
    digests = []
    for about in (run.datasets or _from_plan(run.plan)).values():
        digest = about.get("digest")
        if digest:
            _add_set(found, digest, Path(about.get("directory", "")), about.get("sources", []), None)
            digests.append(digest)
    commit = str(run.facts.get("git", {}).get("commit", ""))[:12]
    words = [f"run {run.run_id}" if run.run_id else "not tracked", f"code {commit}" if commit else ""]
    title = f"{directory} ({', '.join(filter(None, words))})"
    found.add(str(directory), Node("run", title, tuple(filter(None, (str(directory), run.run_id)))), *digests)
    for path in (directory / "best_model.pt", *sorted(directory.glob("model_[0-9]*.pt"))[-1:]):
        if path.is_file():
            found.add(str(path), Node("model", str(path), (str(path),)), str(directory))


def _from_plan(plan: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """The sets of a training that did not record them, as they lie there now."""
    found = {}
    for context, key in (("training", "dataset"), ("validation", "val_dataset")):
        if plan.get(key):
            try:
                found[context] = {"digest": Manifest.read(Path(plan[key])).digest, "directory": plan[key]}
            except BhiveError:
                continue
    return found
