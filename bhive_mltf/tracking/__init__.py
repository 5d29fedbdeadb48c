"""One MLflow run per training. mlflow itself is imported when a run is made or opened, never here."""

from bhive_mltf.tracking import environment
from bhive_mltf.tracking.create_run import prepare
from bhive_mltf.tracking.current_run import attach, current, log_epoch
from bhive_mltf.tracking.history import provenance
from bhive_mltf.tracking.run import NullRun, Run
from bhive_mltf.tracking.store import RunRecord, view_command
from bhive_mltf.tracking.sync import close, close_abandoned

__all__ = [
    "NullRun",
    "Run",
    "RunRecord",
    "attach",
    "close",
    "close_abandoned",
    "current",
    "environment",
    "log_epoch",
    "prepare",
    "provenance",
    "view_command",
]
