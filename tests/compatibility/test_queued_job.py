"""A job that commit a2464a8 put back into the queue ends well with the code of today.

`job/` holds what that commit wrote for the training in `output.tar.xz`: batch script, spec, record, first attempt.
"""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from bhive_mltf.slurm import outcome
from bhive_mltf.slurm.batch_step.attempts import JobOutcome, read_attempts
from bhive_mltf.slurm.job import SPEC_NAME, JobSpec
from bhive_mltf.slurm.record import JobRecord
from bhive_mltf.slurm.states import JobState
from tests.compatibility.test_artefacts import HERE, check_ended, environment, training_in

# one task on this machine, its output where the option says
SRUN = """#!/bin/bash
while [[ $1 == --* ]]; do [[ $1 == --output=* ]] && log=${1#--output=}; shift; done
export SLURM_STEP_ID=0 SLURM_PROCID=0 SLURM_STEP_NUM_TASKS=1 SLURM_LOCALID=0
[[ -z $log ]] || exec >> "${log//%t/0}" 2>&1
exec "$@"
"""
NAMES = {"spec.json": "spec.json", "job.json": "job.json", "outcome.json": "outcome.json", "job.sh": "job.sh"}


@pytest.fixture
def directory(output):
    """The training of that commit with its job, as if both had always been in this folder."""
    found = training_in(output)
    plan = json.loads((found / "plan.json").read_text())
    (found / "plan.json").write_text(json.dumps({**plan, "tracking": False}))
    for name, target in {**NAMES, "attempt.json": "attempts/41_1.json"}.items():
        path = found / "slurm" / target
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text((HERE / "job" / name).read_text().replace("/data/output", str(output)))
    (found / "slurm/probe").write_text(JobSpec.read(found / "slurm" / SPEC_NAME).token)
    return found


@pytest.fixture
def node(output, tmp_path):
    """Variables of a batch step in the second attempt of job 41."""
    programs = {"srun": SRUN, "scontrol": "#!/bin/bash\necho localhost\n"}
    (tmp_path / "bin").mkdir()
    for name, text in programs.items():
        (tmp_path / "bin" / name).write_text(text)
        (tmp_path / "bin" / name).chmod(0o755)
    path = os.pathsep.join([str(tmp_path / "bin"), str(Path(sys.executable).parent), os.environ["PATH"]])
    slurm = {"SLURM_JOB_ID": "41", "SLURM_RESTART_COUNT": "1", "SLURM_JOB_NODELIST": "localhost"}
    return {**environment(output), **slurm, "SLURMD_NODENAME": "localhost", "PATH": path}


@pytest.mark.long
def test_its_batch_script_trains_to_the_end(output, expected, directory, node):
    record = JobRecord.read(directory)
    assert (record.job_id, record.restarts, record.state) == ("41", 1, JobState.PENDING)
    before = JobOutcome.read(record.folder, record.token)
    assert (before.outcome, before.requeued) == ("stopped", True)
    done = subprocess.run(
        ["bash", "job.sh"], cwd=record.folder, env=node, capture_output=True, text=True, timeout=300, check=False
    )
    log = (directory / "logs/rank_0.log").read_text()
    assert done.returncode == 0, done.stderr + log
    assert "epoch 1/3" not in log
    assert "epoch 3/3" in log
    check_ended(directory, output, expected)
    assert [(attempt.number, attempt.outcome) for attempt in read_attempts(record.folder)] == [
        (1, "stopped"),
        (2, "done"),
    ]
    assert outcome.is_done(record.model_copy(update={"state": JobState.COMPLETED}))
    assert outcome.is_done(record.model_copy(update={"state": JobState.GONE}))


def test_its_batch_step_finds_what_it_starts_on_nodes(directory, node, tmp_path):
    def start(*arguments):
        command = [sys.executable, "-m", *arguments]
        return subprocess.run(command, env=node, capture_output=True, text=True, timeout=120, check=False)

    token = JobSpec.read(directory / "slurm" / SPEC_NAME).token
    checked = start("bhive_mltf.slurm.inside.preflight", str(directory / "slurm/probe"), token, "")
    report = json.loads(checked.stdout)
    assert (report["node"], report["problem"]) == ("localhost", "")
    copies = tmp_path / "nvme" / "bhive_41"
    copies.mkdir(parents=True)
    assert start("bhive_mltf.slurm.inside.staging", "remove", str(copies)).returncode == 0
    assert not copies.exists()
