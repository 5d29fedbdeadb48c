"""Whom the client asks, how often, and what it makes of no answer."""

import pytest

from bhive_mltf.errors import QueryFailedError
from bhive_mltf.slurm.client import Slurm
from bhive_mltf.slurm.states import JobState

CHAIN = [
    # where the job still is, accounting, expected state, programs asked
    ({}, "auto", "COMPLETED", ["squeue"]),
    ({"left": True}, "auto", "COMPLETED", ["squeue", "sacct"]),
    ({"left": True}, False, "COMPLETED", ["squeue", "scontrol"]),
    ({"left": "purged"}, True, "COMPLETED", ["squeue", "sacct"]),
    ({"left": "purged"}, False, "GONE", ["squeue", "scontrol"]),
    # the accounting database says that it runs: it lags, or was never told the end
    ({"left": "purged", "state": "RUNNING"}, "auto", "GONE", ["squeue", "sacct", "scontrol"]),
]


@pytest.fixture
def finished(fake, tmp_path):
    script = tmp_path / "job.sh"
    script.write_text("#!/bin/bash\n#SBATCH --job-name=bhive-x\n")
    job_id = Slurm().submit(script)
    fake.change(job_id, state="COMPLETED")
    return job_id


@pytest.mark.parametrize(("change", "accounting", "state", "asked"), CHAIN)
def test_squeue_then_sacct_then_scontrol(fake, finished, change, accounting, state, asked):
    fake.change(finished, **change)
    found = Slurm(accounting=accounting).query([finished])
    assert found[finished].state is JobState[state]
    assert [call[0] for call in fake.state()["calls"][1:]] == asked


def test_one_question_for_all_jobs_of_the_user(fake, finished, tmp_path):
    client = Slurm(fresh_s=60.0)
    others = [client.submit(tmp_path / "job.sh") for _ in range(3)]
    found = client.query([finished, *others])
    client.query(others)
    assert {info.state.name for info in found.values()} == {"COMPLETED", "PENDING"}
    assert len(fake.calls("squeue")) == 1
    assert not any("--jobs" in word for word in fake.calls("squeue")[0])


def test_a_site_without_accounting_is_found_out_once(fake, finished):
    fake.change(finished, left=True)
    fake.fail("sacct", "Slurm accounting storage is disabled")
    client = Slurm(fresh_s=0.0)
    for _ in range(3):
        assert client.query([finished])[finished].state is JobState.COMPLETED
    assert len(fake.calls("sacct")) == 1


def test_sacct_missing(fake, finished):
    fake.change(finished, left=True)
    (fake.folder / "sacct").unlink()
    client = Slurm()
    # another one may lie further back on PATH
    assert client.query([finished])[finished].state is JobState.COMPLETED


@pytest.mark.parametrize(
    ("program", "accounting", "left"), [("squeue", "auto", False), ("sacct", True, True), ("scontrol", False, True)]
)
def test_no_answer_is_no_verdict(fake, finished, program, accounting, left):
    fake.change(finished, left=left)
    fake.fail(program, "Unable to contact slurm controller (connect failure)")
    with pytest.raises(QueryFailedError, match=f"{program} failed: .*Unable to contact slurm controller"):
        Slurm(accounting=accounting).query([finished])


def test_a_slow_answer_is_no_verdict(fake, finished):
    (fake.folder / "squeue").write_text("#!/bin/bash\nexec sleep 20\n")
    with pytest.raises(QueryFailedError, match=r"squeue gave no answer in 0.2 s"):
        Slurm(query_timeout_s=0.2).query([finished])


def test_a_slow_sbatch_ends_in_time(fake, tmp_path):
    (fake.folder / "sbatch").write_text("#!/bin/bash\nexec sleep 20\n")
    (tmp_path / "job.sh").write_text("#!/bin/bash\n")
    with pytest.raises(QueryFailedError, match=r"sbatch gave no answer in 0.2 s"):
        Slurm(submit_timeout_s=0.2).submit(tmp_path / "job.sh")


def test_place_in_the_queue(fake, tmp_path):
    (tmp_path / "job.sh").write_text("#!/bin/bash\n#SBATCH --job-name=bhive-x\n")
    client = Slurm()
    first, second = (client.submit(tmp_path / "job.sh") for _ in range(2))
    assert (client.position(first), client.position(second), client.position("7")) == (1, 2, None)
    fake.fail("squeue", "no")
    assert client.position(first) is None


def test_slurms_own_variables_do_not_change_what_is_printed(fake, finished, monkeypatch):
    monkeypatch.setenv("SQUEUE_FORMAT", "%i")
    monkeypatch.setenv("SQUEUE_STATES", "RUNNING")
    (fake.folder / "squeue").write_text('#!/bin/bash\n[ -z "$SQUEUE_FORMAT$SQUEUE_STATES" ] || exit 3\n')
    assert Slurm().mine() == []
