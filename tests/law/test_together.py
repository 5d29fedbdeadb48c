"""Several commands at once, and the debug mode."""

import json
import subprocess
import sys

import pytest

from tests.helpers.commands import flat, write_config

DATASET = {"--config": "offline_run3", "--dataset-version": "v1"}


@pytest.mark.long
def test_two_commands_make_one_dataset(sandbox, btag_lists):
    options = flat({**DATASET, "--filelist": btag_lists / "train.txt"})
    commands = [sandbox.start("DatasetConstructorTask", *options) for _ in range(2)]
    outputs = [command.communicate(timeout=120)[0] for command in commands]
    assert [command.returncode for command in commands] == [0, 0], outputs
    folder = sandbox.data_path / "DatasetConstructorTask/offline_run3/v1"
    assert json.loads((folder / "manifest.json").read_text())["n_jets"] == 1200
    assert list((sandbox.data_path / "ConvertNtuples").rglob("*.arrow")) == []


@pytest.mark.long
def test_a_second_command_waits_and_finds_the_training_done(sandbox, btag_options):
    options = [*flat(btag_options), "--loss-weighting", True, "--tracking", False]
    sandbox.run("DatasetConstructorTask", *flat({**DATASET, "--filelist": btag_options["--filelist"]}))
    commands = [sandbox.start("TrainingTask", *options) for _ in range(2)]
    outputs = [command.communicate(timeout=200)[0] for command in commands]
    assert [command.returncode for command in commands] == [0, 0], outputs
    assert sum("epoch 2/2" in output for output in outputs) == 1
    assert sum("is in use by process" in output for output in outputs) == 1


@pytest.mark.long
def test_debug_mode_reads_one_file_per_process(sandbox, btag_lists):
    lines = [*(btag_lists / "train.txt").read_text().split(), *(btag_lists / "test.txt").read_text().split()]
    filelist = sandbox.folder / "all.txt"
    filelist.write_text("\n".join(lines))
    config = write_config(sandbox.folder, processes=["TT", "QCD"])
    options = [*flat({**DATASET, "--config": config, "--filelist": filelist}), "--debug", True]
    sandbox.run("DatasetConstructorTask", *options)
    assert "1 complete ones" in sandbox.run("DatasetConstructorTask", *options)
    manifest = json.loads((sandbox.data_path / "DatasetConstructorTask/mine/debug/v1/manifest.json").read_text())
    assert len(manifest["sources"]) == 2


@pytest.mark.long
def test_restart_trains_anew_in_a_run_of_its_own(sandbox, btag_options):
    mlflow = pytest.importorskip("mlflow")
    options = [*flat({**btag_options, "--epochs": 1}), "--loss-weighting", True]
    sandbox.run("TrainingTask", *options)
    sandbox.run("TrainingTask", *options, "--learning-rate", 0.01, "--restart", True)
    client = mlflow.MlflowClient(f"sqlite:///{sandbox.data_path}/mlflow.db")
    (experiment,) = [e for e in client.search_experiments() if e.name == "bhive_mltf"]
    runs = client.search_runs([experiment.experiment_id])
    assert {run.data.params["learning_rate"] for run in runs} == {"0.001", "0.01"}
    assert {run.info.status for run in runs} == {"FINISHED"}


BETWEEN_TWO_LOOKS = """
import sys
from bhive_mltf.law.tasks.dataset import ConvertNtuples

looks = iter([False, True])
ConvertNtuples.is_needless = lambda task: next(looks)
task = ConvertNtuples(config="offline_run3", dataset_version="v1", filelist=sys.argv[1])
print("complete:", task.complete())
"""


def test_staged_files_removed_between_two_looks_are_not_missing(sandbox, btag_lists):
    """Another command makes the set, and removes them, after the first look."""
    command = [sys.executable, "-c", BETWEEN_TWO_LOOKS, str(btag_lists / "train.txt")]
    done = subprocess.run(command, env=sandbox.environment, capture_output=True, text=True, check=False)
    assert "complete: True" in done.stdout, done.stderr
