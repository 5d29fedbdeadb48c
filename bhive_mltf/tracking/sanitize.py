"""Names and values as MLflow takes them."""

from __future__ import annotations

import json
import logging
import posixpath
import re
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from mlflow import MlflowClient

logger = logging.getLogger(__name__)

MAX_PARAM = 6000  # characters; mlflow cuts longer ones
MAX_TAG = 5000
MAX_NAME = 250
_NOT_IN_NAMES = re.compile(r"[^\w.\- :/]")
_NOT_IN_MODEL_NAMES = re.compile(r"[^\w\- ]")
_CUT = "... (cut; whole text in the artifact {file})"


def name(text: str) -> str:
    """`text` as the name of a metric, a parameter or a tag: other characters become `_`."""
    clean = posixpath.normpath(_NOT_IN_NAMES.sub("_", text)).lstrip("/")[:MAX_NAME]
    return clean if clean not in ("", ".") and not clean.startswith("..") else "_" + clean.lstrip(".")


def model_name(text: str) -> str:
    """`text` as the name of a logged model."""
    return _NOT_IN_MODEL_NAMES.sub("_", text)[:MAX_NAME] or "model"


def as_text(value: object) -> str:
    """The value of a parameter or tag as text: strings as they are, containers as JSON."""
    if isinstance(value, str):
        return value
    if isinstance(value, Mapping | list | tuple):
        return json.dumps(value, default=str)
    return str(value)


def log_params(client: MlflowClient, run_id: str, params: Mapping[str, object]) -> None:
    """Add parameters to a run; the value that is there already stays, with one warning that names the others."""
    from mlflow.entities import Param

    known: dict[str, str] = client.get_run(run_id).data.params
    new: list[Param] = []
    changed: list[str] = []
    for key, value in params.items():
        label, text = name(key), as_text(value)
        if len(text) > MAX_PARAM:
            file = f"params/{label}.txt"
            if label not in known:
                client.log_text(run_id, text, file)
            text = text[: MAX_PARAM - 500] + _CUT.format(file=file)
        if label not in known:
            new.append(Param(label, text))
        elif known[label] != text:
            changed.append(f"{label} ({_short(known[label])} stays, now {_short(text)})")
    if new:
        client.log_batch(run_id, params=new)
    if changed:
        logger.warning(
            "MLflow parameters of run %s cannot change: %s; begin another training to record other values",
            run_id,
            ", ".join(sorted(changed)),
        )


def log_tags(client: MlflowClient, run_id: str, tags: Mapping[str, object]) -> None:
    """Set tags of a run."""
    from mlflow.entities import RunTag

    if tags:
        client.log_batch(run_id, tags=[RunTag(*pair) for pair in run_tags(tags).items()])


def run_tags(tags: Mapping[str, object]) -> dict[str, str]:
    """Tags as MLflow takes them; long values are cut."""
    return {name(key): as_text(value)[:MAX_TAG] for key, value in tags.items()}


def dataset_schema(columns: Mapping[str, str]) -> str:
    """Columns and their types (`float`, `long`, ...) in the form that MLflow's page draws as a table."""
    return json.dumps({"mlflow_colspec": [{"name": key, "type": kind} for key, kind in columns.items()]})


def json_text(value: Any) -> str:  # noqa: ANN401 - any JSON value
    """Indented JSON; what JSON does not know is written as text."""
    return json.dumps(value, indent=2, default=str)


def _short(text: str) -> str:
    return repr(text if len(text) <= 60 else text[:57] + "...")
