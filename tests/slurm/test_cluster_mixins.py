"""Upstream's layout with the mixins, as a job on the real cluster."""

import os

import pytest

from bhive_mltf.slurm.record import JobRecord
from tests.upstream_layout.edits import write_layout
from tests.upstream_layout.trainings import Layout, write_set

pytestmark = pytest.mark.slurm
METRICS = {"Training Loss", "Training Accuracy", "Validation Loss", "Validation Accuracy"}


@pytest.fixture
def layout(cluster, tmp_path):
    data_path = tmp_path / "output"
    write_set(data_path)
    lab = {"BHIVE_SLURM_LAB": str(cluster.directory), "PATH": os.environ["PATH"]}
    return Layout(write_layout(tmp_path / "layout", 0, 1, 2, 3), data_path, **lab)


def test_two_ranks_of_its_own_task_train_as_a_job(layout):
    done = layout.train("--ranks-per-node", 2, "--slurm", "local-lab")
    assert done.returncode == 0, done.stdout
    _, run = layout.run()
    assert (run.info.status, set(run.data.metrics)) == ("FINISHED", METRICS)
    assert len(layout.weights()) > 1
    assert JobRecord.read(layout.directory).exit_code == 0


def test_a_job_whose_rank_is_killed_goes_on(layout):
    layout.haunt("kill,1,0")
    done = layout.train("--ranks-per-node", 2, "--slurm", "local-lab")
    assert done.returncode == 0, done.stdout
    _, run = layout.run()
    assert (run.info.status, set(run.data.metrics)) == ("FINISHED", METRICS)
    log = (layout.directory / "logs/rank_0.log").read_text()
    assert "going on with the models in" in log
