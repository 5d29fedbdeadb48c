"""Ranks in the sandbox, and going on after a time limit: the launcher of one node, and the worker."""

import json
import os
import signal
import subprocess
import sys
import time

import pytest

from bhive_mltf.gateway.inside.plan import LaunchPlan
from bhive_mltf.gateway.worker.main import tick
from bhive_mltf.ranks.files import JOB_FOLDER_VARIABLE
from tests.gateway import needs
from tests.gateway.stack import REPOSITORY

pytestmark = pytest.mark.gateway


class Launcher:
    """The launcher of a node, with a project of one file."""

    def __init__(self, folder):
        needs.program("bwrap", "apt-get install bubblewrap")
        self.job = folder / "job"
        for name in ("work/ckpt", "work/out", "private", "logs", "slurm"):
            (self.job / name).mkdir(parents=True)
        (self.job / "private" / "token").write_text("token")

    def start(self, code, *, ranks=1, resume=False, **variables):
        (self.job / "work" / "main.py").write_text(code)
        plan = LaunchPlan(
            argv=("python", "main.py"),
            work=str(self.job / "work"),
            logs=str(self.job / "logs"),
            runtime="bubblewrap",
            network="own",
            environment=sys.prefix,
            read_only=(sys.base_prefix,),
            tracking_url="http://127.0.0.1:9",
            token_file=str(self.job / "private" / "token"),
            run_id="run",
            experiment_id="1",
            ranks_per_node=ranks,
            resume=resume,
        )
        path = self.job / "private" / "launch.json"
        path.write_text(plan.to_json())
        return subprocess.Popen(
            [sys.executable, "-m", "bhive_mltf.gateway.inside.launch", str(path)],
            env={
                **os.environ,
                "PYTHONPATH": str(REPOSITORY),
                JOB_FOLDER_VARIABLE: str(self.job / "slurm"),
                **variables,
            },
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def run(self, code, **options):
        process = self.start(code, **options)
        out, err = process.communicate(timeout=60)
        return process.returncode, out, err

    def word(self):
        return json.loads((self.job / "logs" / "rank_0.error.json").read_text())["message"]

    def note(self):
        return json.loads((self.job / "slurm" / "stopped.json").read_text())


@pytest.fixture
def launcher(tmp_path):
    return Launcher(tmp_path)


def test_each_rank_has_its_place_and_its_lines(launcher):
    code = "import os\nprint(*(os.environ[n] for n in ('RANK', 'LOCAL_RANK', 'WORLD_SIZE', 'NNODES', 'MASTER_ADDR')))"
    status, out, err = launcher.run(code, ranks=3)
    assert status == 0, err
    assert sorted(out.splitlines()) == [f"[{rank}] {rank} {rank} 3 1 127.0.0.1" for rank in range(3)]


def test_second_node_has_the_ranks_after_those_of_the_first(launcher):
    place = {"SLURM_PROCID": "1", "SLURM_STEP_NUM_TASKS": "2", "MASTER_ADDR": "localhost", "MASTER_PORT": "4711"}
    code = (
        "import os\nprint(*(os.environ[n] for n in ('RANK', 'NODE_RANK', 'WORLD_SIZE', 'MASTER_ADDR', 'MASTER_PORT')))"
    )
    _, out, _ = launcher.run(code, ranks=2, **place)
    assert sorted(out.splitlines()) == ["[2] 2 1 4 127.0.0.1 4711", "[3] 3 1 4 127.0.0.1 4711"]


def test_failing_rank_ends_the_others_and_gives_its_code(launcher):
    code = "import os, time\nif os.environ['RANK'] == '1':\n    raise SystemExit(7)\ntime.sleep(50)"
    begun = time.monotonic()
    status, _, _ = launcher.run(code, ranks=2)
    assert status == 7
    assert time.monotonic() - begun < 30
    assert launcher.word() == "its command ended with exit code 7"


SAVING = """
import os, signal, sys, time
warned = []
signal.signal(signal.SIGUSR2, lambda *_: warned.append(1))
print("ready", flush=True)
while not (warned and os.path.exists(os.environ["MLTF_STOP_FILE"])):
    time.sleep(0.1)
open(os.environ["MLTF_CHECKPOINT_DIR"] + "/state", "w").write("saved")
sys.exit(75)
"""


def test_warned_project_saves_and_the_job_goes_back(launcher):
    process = launcher.start(SAVING, resume=True, SLURM_RESTART_COUNT="2")
    assert process.stdout.readline() == "ready\n"
    process.send_signal(signal.SIGUSR2)
    assert process.wait(30) == 0
    assert launcher.note()["attempt"] == 3
    assert (launcher.job / "work" / "ckpt" / "state").read_text() == "saved"
    assert not (launcher.job / "logs" / "rank_0.error.json").exists()
    process.communicate()


def test_75_without_a_warning_is_a_failure(launcher):
    assert launcher.run("raise SystemExit(75)", resume=True)[0] == 75
    assert launcher.word() == "its command ended with exit code 75"
    assert not (launcher.job / "slurm" / "stopped.json").exists()


def test_project_that_made_no_promise_is_not_warned(launcher):
    code = "import os, time\nprint('ready', flush=True)\ntime.sleep(3)\nprint('MLTF_STOP_FILE' in os.environ)"
    process = launcher.start(code)
    process.stdout.readline()
    process.send_signal(signal.SIGUSR2)
    assert process.communicate(timeout=30)[0] == "False\n"
    assert process.returncode == 0


def test_later_attempt_is_told_to_go_on(launcher):
    code = "import os\nprint(*(os.environ[n] for n in ('MLTF_RESUME', 'MLTF_ATTEMPT', 'MLTF_DEADLINE')))"
    variables = {"SLURM_RESTART_COUNT": "1", "SLURM_JOB_END_TIME": "1790000000"}
    assert launcher.run(code, resume=True, **variables)[1] == "1 2 1790000000\n"


def limit(whole, job):
    """The job reaches its time limit, ten seconds after its batch step has begun."""
    row = whole.row(job)
    folder = whole.settings.job_folder(job) / "slurm" / "attempts"
    folder.mkdir(parents=True, exist_ok=True)
    number = row.restarts + 1
    record = {"job_id": row.job_id, "number": number, "nodes": ["n1"], "start": time.time() - 10}
    (folder / f"{row.job_id}_{number}.json").write_text(json.dumps(record))
    whole.scheduler.change(row.job_id, state="TIMEOUT")


def handed_in(whole, alice, **values):
    job = alice.submit(alice.upload()[0], "key-00001", **values).json()["id"]
    whole.until(job, "queued")
    whole.scheduler.change(whole.row(job).job_id, state="RUNNING")
    whole.until(job, "running")
    return job


def test_job_that_saved_before_its_limit_goes_on_in_its_run(whole, alice):
    job = handed_in(whole, alice, resume=True)
    assert whole.plan(job).resume
    checkpoint = whole.settings.job_folder(job) / "work" / "ckpt" / "state"
    checkpoint.write_text("1")
    limit(whole, job)
    for _ in range(3):
        tick(whole.steps, whole.database, whole.office)
    assert len([call for call in whole.scheduler.calls("scontrol") if "requeue" in call]) == 1
    whole.scheduler.change(whole.row(job).job_id, state="RUNNING")
    tick(whole.steps, whole.database, whole.office)
    row = whole.row(job)
    assert (row.state, row.restarts) == ("running", 1)
    assert whole.end(job, "COMPLETED").state == "succeeded"
    assert whole.run(job)["status"] == "FINISHED"


def test_job_without_a_new_checkpoint_ends_at_its_limit(whole, alice):
    job = handed_in(whole, alice, resume=True)
    limit(whole, job)
    found = whole.until(job, "failed")
    assert found.reason_code == "time_limit"
    assert "no checkpoint since its last start" in found.reason


def test_job_that_made_no_promise_is_told_of_resume(whole, alice):
    job = handed_in(whole, alice)
    (whole.settings.job_folder(job) / "work" / "ckpt" / "state").write_text("1")
    limit(whole, job)
    found = whole.until(job, "failed")
    assert "hand in with 'resume'" in found.reason
    assert whole.scheduler.calls("scontrol") == []


@pytest.mark.parametrize(("values", "word"), [({"nodes": 2}, "nodes"), ({"ranks_per_node": 3}, "ranks_per_node")])
def test_more_than_a_profile_has_is_refused(whole, alice, values, word):
    answer = alice.submit(alice.upload()[0], "key-00001", **values)
    assert answer.status_code == 422
    assert answer.json()["errors"][0]["pointer"] == f"/{word}"
