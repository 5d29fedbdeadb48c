"""`preprocess.json`: all that a program needs to make the inputs of an exported model from the branches of a file."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import bhive_mltf
from bhive_mltf.config import Config
from bhive_mltf.config.expressions.nodes import Name, Node, Number
from bhive_mltf.config.schema import Group
from bhive_mltf.evaluation.export.padded import Port, ports
from bhive_mltf.files import atomic
from bhive_mltf.interface import GroupInput
from bhive_mltf.models.base import Tagger

FORMAT = 1
FILE_NAME, MODEL_NAME = "preprocess.json", "model.onnx"
PACKAGE = "onnx_scorer"
_SCORER = {"__init__.py": "evaluation/export/scorer.py"}
_EXPRESSIONS = {"nodes.py": "config/expressions/nodes.py", "functions.py": "config/expressions/functions.py"}
_NAME_IN_CODE = "bhive_mltf.config.expressions."


def describe(model: Tagger, model_name: str, config: Config, training: Mapping[str, Any]) -> dict[str, Any]:
    """The content of the file.

    Parameters
    ----------
    training : where the model comes from: `directory`, `run_id`, `generation`, `dataset_digest`.
    """
    return {
        "format": FORMAT,
        "file": MODEL_NAME,
        "model": model_name,
        "bhive_mltf": bhive_mltf.__version__,
        "config": config.name,
        "config_digest": config.digest,
        "training": dict(training),
        "tree": config.treename,
        "classes": [name for name, _ in model.inputs.classes],
        "class_labels": {name: list(labels) for name, labels in model.inputs.classes},
        "regression": list(model.regression),
        "acceptance": {
            config.pt_key: [config.bins_pt[0], config.bins_pt[-1]],
            config.eta_key: [config.bins_eta[0], config.bins_eta[-1]],
        },
        "non_finite": config.non_finite,
        "padding": "slots without a candidate are zero; the number of slots is free, candidates beyond `slots` are cut",
        "groups": [
            _group(config.group(group.name), group, config, [port for port in ports(model) if port.group == group.name])
            for group in model.inputs.groups
        ],
    }


def _group(stored: Group, wanted: GroupInput, config: Config, inputs: list[Port]) -> dict[str, Any]:
    """A group: its branches, its columns as they are made, and which of them go into which input."""
    columns = list(stored.columns)
    vectors = stored.four_vectors.columns if stored.four_vectors else ()
    half = config.data_precision == "float16"
    made: list[dict[str, Any]] = [{"name": name, "half": half and name not in vectors} for name in stored.plain]
    made += [
        {
            "name": feature.name,
            "half": half and feature.name not in vectors,
            "text": feature.expression,
            "expression": tree(feature.parse().root),
        }
        for feature in stored.custom
    ]
    picked = {"features": wanted.columns, "four_vectors": wanted.four_vectors, "n": ()}
    return {
        "name": stored.name,
        "length": stored.length,
        "slots": wanted.length,
        "branches": list(stored.branches),
        "columns": made,
        "four_vectors": wanted.kind,
        "inputs": [
            {
                "name": port.name,
                "what": port.what,
                "columns": list(picked[port.what]),
                "positions": [columns.index(name) for name in picked[port.what]],
            }
            for port in inputs
        ],
    }


def tree(node: Node) -> Any:  # noqa: ANN401 - any JSON value
    """An expression as JSON: a number, the name of a column, or [function, arguments, options]."""
    if isinstance(node, Number):
        return node.value
    if isinstance(node, Name):
        return node.name
    return [node.function, [tree(one) for one in node.arguments], {key: tree(value) for key, value in node.options}]


def write_scorer(folder: Path) -> Path:
    """Write the package that scores jets beside a model, without imports of this one; its folder."""
    package = folder / PACKAGE
    package.mkdir(parents=True, exist_ok=True)
    root = Path(bhive_mltf.__file__).parent
    for name, source in {**_SCORER, **_EXPRESSIONS}.items():
        text = (root / source).read_text(encoding="utf-8").replace(f"from {_NAME_IN_CODE}", "from .")
        atomic.write_text(package / name, text)
    return package
