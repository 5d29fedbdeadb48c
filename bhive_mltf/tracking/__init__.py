"""One MLflow run per training. mlflow itself is imported when a run is made or opened, never here."""

from bhive_mltf.tracking import environment
from bhive_mltf.tracking.abandoned_runs import close_abandoned
from bhive_mltf.tracking.create_run import prepare
from bhive_mltf.tracking.record import RunRecord
from bhive_mltf.tracking.run import NullRun, Run, attach
from bhive_mltf.tracking.store import view_command

__all__ = ["NullRun", "Run", "RunRecord", "attach", "close_abandoned", "environment", "prepare", "view_command"]
