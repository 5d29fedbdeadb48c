"""`python -m bhive_mltf.training.provenance.rerun PLAN`: a plan trained and recorded without law."""

from __future__ import annotations

import sys
from pathlib import Path

from bhive_mltf.files.records import Record
from bhive_mltf.training import launch
from bhive_mltf.training.plan import RESULT_FIELDS, TrainingPlan


def run(path: Path) -> None:
    """Make the MLflow run of the plan, then train it on as many ranks as it says."""
    plan = TrainingPlan.read(path)
    parameters = plan.model_dump(mode="json", include=set(RESULT_FIELDS))
    Record(parameters, plan.generation).write(plan.directory)
    request = launch.TrainingRequest(
        directory=plan.directory,
        asked={},
        defaults={},
        config_name=plan.config.name,
        restart=False,
        resume_epoch=0,
        extend_training=plan.extend_training,
        iterations=plan.use_iterations,
        data_path=str(plan.directory.parent),
        task="reproduce",
        run_name=f"again: {plan.model_name}",
        params={},
        dataset_version=plan.dataset.name,
    )
    launch.create_run(request, plan, "RUNNING")
    launch.launch(plan)


if __name__ == "__main__":
    run(Path(sys.argv[1]))
