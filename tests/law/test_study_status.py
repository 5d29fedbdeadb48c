"""How the run of a study ends, whatever ended the study."""

import json
import os
import subprocess
import sys

import pytest

from tests.helpers.commands import REPOSITORY

pytest.importorskip("optuna")
mlflow = pytest.importorskip("mlflow")

# the last end is that of the command typed again
ENDS = {
    "stopped": ("TrainingInterruptedError('stopped')", "KILLED", "TrainingInterruptedError: stopped"),
    "ctrl-c": ("KeyboardInterrupt()", "KILLED", "KeyboardInterrupt"),
    "sys.exit": ("SystemExit(3)", "FAILED", "SystemExit: 3"),
    "full disk": ("OSError('no space left')", "FAILED", "OSError: no space left"),
    "done": ("None", "FAILED", ""),  # no trial is complete
}
CODE = """
import json, sys, warnings
from pathlib import Path
warnings.simplefilter("ignore")
from mlflow import MlflowClient
from bhive_mltf.ranks.signals import TrainingInterruptedError
from bhive_mltf.law.tasks.optimize import OptimizeTask
from bhive_mltf.tracking import store
from bhive_mltf.training.studies import study

folder, ends = Path(sys.argv[1]), json.loads(sys.argv[2])
(folder / "space.yml").write_text("learning_rate: {low: 1.0e-4, high: 1.0e-2}")
task = OptimizeTask(
    config="offline_run3", dataset_version="v1", training_version="t1", model_name="DeepJet", study="s",
    space=str(folder / "space.yml"),
)
found = {}
for name, text in ends.items():
    error = eval(text)

    def run(_):
        if error is not None:
            raise error

    study.Study.run = run
    try:
        task.run()
    except BaseException as raised:
        assert raised is error, raised
    client = MlflowClient(store.tracking_uri(folder))
    (kept,) = client.search_runs([one.experiment_id for one in client.search_experiments()])
    found[name] = kept.info.status, kept.data.tags.get("failure", "")
print(json.dumps(found))
"""


@pytest.fixture(scope="module")
def found(tmp_path_factory):
    """Status and reason of the one run after each end of the study."""
    folder = tmp_path_factory.mktemp("study")
    errors = json.dumps({name: error for name, (error, _, _) in ENDS.items()})
    environment = {**os.environ, "DATA_PATH": str(folder), "MPLBACKEND": "agg"}
    command = [sys.executable, "-c", CODE, str(folder), errors]
    done = subprocess.run(command, env=environment, cwd=REPOSITORY, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


@pytest.mark.long
@pytest.mark.parametrize("end", ENDS)
def test_the_run_of_a_study_has_a_true_status(found, end):
    _, status, reason = ENDS[end]
    assert found[end] == [status, reason]


BEGIN = CODE[: CODE.index("found = {}")] + "print(task.find_or_make_run(Path(task.local_path())).run_id)\n"


@pytest.mark.long
def test_commands_that_start_at_once_make_one_run(tmp_path):
    environment = {**os.environ, "DATA_PATH": str(tmp_path)}
    command = [sys.executable, "-c", BEGIN, str(tmp_path), "{}"]
    started = [
        subprocess.Popen(command, env=environment, cwd=REPOSITORY, stdout=subprocess.PIPE, text=True) for _ in range(3)
    ]
    said = [process.communicate(timeout=300)[0] for process in started]
    assert [process.returncode for process in started] == [0, 0, 0]
    assert len({text.splitlines()[-1] for text in said}) == 1
