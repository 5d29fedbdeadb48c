"""An exported model as an MLflow model: jets of ROOT files in, scores out; needs neither torch nor this package.

`mlflow models predict` gets a table with the column `file` (and, if wanted, `start` and `stop`: entries) and gives one
row per jet: `file`, `entry` and a column per class.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

from bhive_mltf import compat
from bhive_mltf.evaluation.export.preprocess import FILE_NAME, MODEL_NAME, PACKAGE
from bhive_mltf.files import atomic

_REQUIREMENTS = ("awkward", "mlflow", "numpy", "onnxruntime", "pandas", "uproot")
_RANGE = ("start", "stop")
# as MLflow writes it for a table
_EXAMPLE = {
    "artifact_path": "input_example.json",
    "serving_input_path": "serving_input_example.json",
    "type": "dataframe",
    "pandas_orient": "split",
}
_SCRIPT = '''"""The model that MLflow loads: scores of the jets of ROOT files."""

import mlflow
import pandas as pd


class JetScorer(mlflow.pyfunc.PythonModel):
    """One row per jet from a table with the column `file`."""

    def load_context(self, context):
        from onnx_scorer import Scorer

        self.scorer = Scorer(context.artifacts["exported"])

    def predict(self, context, model_input: pd.DataFrame, params=None):
        tables = []
        for row in pd.DataFrame(model_input).to_dict("records"):
            start, stop = int(row.get("start", 0)), row.get("stop")
            scores = self.scorer.score(row["file"], start, None if stop is None else int(stop))
            table = pd.DataFrame(scores, columns=self.scorer.outputs)
            table.insert(0, "entry", range(start, start + len(table)))
            table.insert(0, "file", row["file"])
            tables.append(table)
        return pd.concat(tables, ignore_index=True)


mlflow.models.set_model(JetScorer())
'''


def save(exported: Path, target: Path) -> None:
    """Write the MLflow model of an exported one (`model.onnx`, `preprocess.json`, the scorer) to a new folder."""
    from bhive_mltf.evaluation.export.quiet import without_remarks

    with without_remarks():  # its first import has some
        import mlflow.pyfunc
        from mlflow.models import Model, ModelSignature
        from mlflow.types import ColSpec, DataType, Schema

    description: dict[str, Any] = json.loads((exported / FILE_NAME).read_text(encoding="utf-8"))
    scratch = target.with_name(target.name + ".parts")
    (scratch / "exported").mkdir(parents=True)
    for name in (MODEL_NAME, FILE_NAME):
        shutil.copy(exported / name, scratch / "exported" / name)
    atomic.write_text(scratch / "jet_scorer.py", _SCRIPT)
    scores = [ColSpec(DataType.float, name) for name in (*description["classes"], *description["regression"])]
    signature = ModelSignature(
        inputs=Schema([ColSpec(DataType.string, "file"), *(ColSpec(DataType.long, n, required=False) for n in _RANGE)]),
        outputs=Schema([ColSpec(DataType.string, "file"), ColSpec(DataType.long, "entry"), *scores]),
    )
    with without_remarks():
        mlflow.pyfunc.save_model(
            str(target),
            python_model=str(scratch / "jet_scorer.py"),
            artifacts={"exported": str(scratch / "exported")},
            code_paths=[str(exported / PACKAGE)],
            pip_requirements=compat.pinned(_REQUIREMENTS),
            signature=signature,
        )
    # not by save_model, which would score the example, and so would need its file
    example = {"dataframe_split": {"columns": ["file"], "data": [["root://host//path/jets.root"]]}}
    atomic.write_json(target / "input_example.json", {"columns": ["file"], "data": example["dataframe_split"]["data"]})
    atomic.write_json(target / "serving_input_example.json", example)
    model = Model.load(str(target))
    model.saved_input_example_info = _EXAMPLE
    model.save(str(target / "MLmodel"))
    shutil.rmtree(scratch)
