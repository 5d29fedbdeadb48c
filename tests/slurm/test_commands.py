"""`bhive-mltf slurm`: profiles, scripts, jobs of a folder; with a scheduler of scripts."""

import pytest

from bhive_mltf.cli import main, slurm_jobs
from bhive_mltf.cli.tracking import ended_as
from bhive_mltf.slurm import dispatch, job, profiles
from bhive_mltf.slurm.client import Slurm
from bhive_mltf.slurm.record import JobRecord
from bhive_mltf.slurm.states import JobState


@pytest.fixture
def record(fake, tmp_path, monkeypatch):
    monkeypatch.setattr(slurm_jobs, "LOOK_S", 0.0)
    slurm_jobs._client.cache_clear()
    monkeypatch.setenv("DATA_PATH", str(tmp_path))
    profile = profiles.read_profile("generic", accounting=False)
    spec = job.make_spec(
        profile, name="t1 DeepJet", kind="ranks", command=["x"], directory=tmp_path / "TrainingTask" / "t1"
    )
    return dispatch.submit_or_attach(profile, spec, Slurm())


def said(capsys, *arguments, code=0):
    assert main(["slurm", *map(str, arguments)]) == code
    captured = capsys.readouterr()
    return captured.err if code else captured.out


def test_profiles_are_listed_and_shown(capsys, tmp_path, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    text = said(capsys, "profiles")
    assert "mltf-a6000  nodes with four RTX A6000" in text
    assert max(map(len, text.splitlines())) <= 80
    # what is shown is a profile again, to begin another one with
    text = said(capsys, "profiles", "mltf-a6000")
    assert "gpus_per_node: 4\n" in text
    (tmp_path / "mine.yml").write_text(text)
    again = said(capsys, "profiles", tmp_path / "mine.yml")
    assert again.splitlines()[1:] == text.splitlines()[1:]


def test_a_script_is_printed_and_not_handed_in(fake, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    text = said(capsys, "render", "mltf-a6000", "hours=12", "nodes=2")
    assert "#SBATCH --nodes=2\n" in text
    assert "#SBATCH --time=0-12:00:00\n" in text
    assert not fake.calls("sbatch")
    assert list(tmp_path.iterdir()) == [fake.folder]
    assert "`hour` is no key of a profile; nearest: hours" in said(capsys, "render", "mltf-a6000", "hour=1", code=1)


def test_jobs_of_the_outputs_are_listed_with_their_states(fake, record, capsys):
    text = said(capsys, "jobs")
    assert f"{record.job_id}  PENDING" in text
    assert "t1 DeepJet" in text
    assert "generic, submitted 0 s ago, Priority\n" in text
    assert "TrainingTask/t1\n" in text
    fake.fail("squeue", "Unable to contact slurm controller (connect failure)")
    slurm_jobs._client.cache_clear()
    assert "as last seen: the scheduler gives no answer" in said(capsys, "jobs")


def test_the_log_of_a_job_and_of_a_rank(fake, record, capsys):
    record.log.write_text("first line\n")
    (record.directory / "logs").mkdir()
    (record.directory / "logs/rank_3.log").write_text("of a rank\n")
    fake.change(record.job_id, state="COMPLETED")
    assert said(capsys, "logs", "-f", record.job_id) == "first line\n"
    assert said(capsys, "logs", "--rank", 3, record.directory) == "of a rank\n"
    assert "the jobs there are: 100" in said(capsys, "logs", "7", code=1)


def test_a_job_is_cancelled_by_id_or_directory(fake, record, capsys):
    assert said(capsys, "cancel", record.directory) == f"job {record.job_id}: CANCELLED\n"
    assert fake.jobs[record.job_id]["state"] == "CANCELLED"
    assert JobRecord.read(record.directory).is_over
    assert "is over already: CANCELLED" in said(capsys, "cancel", record.job_id)


@pytest.mark.parametrize(
    ("state", "status", "failure", "is_over"),
    [
        ("PENDING", "SCHEDULED", "", False),
        ("RUNNING", "", "", False),
        # not known: as it was last seen
        ("ODD", "SCHEDULED", "", False),
        ("CANCELLED", "KILLED", "ended as CANCELLED: it was cancelled", True),
        ("OUT_OF_MEMORY", "FAILED", "ended as OUT_OF_MEMORY: it needed more memory", True),
        # the scheduler may still put it back into the queue
        ("NODE_FAIL", "FAILED", "ended as NODE_FAIL: one of its nodes failed", False),
    ],
)
def test_sync_gives_a_run_the_end_of_its_job(fake, record, state, status, failure, is_over):
    fake.change(record.job_id, state=state)
    end = ended_as(record.directory)
    assert (end.status, end.started is not None) == (status, is_over)
    assert failure in end.failure
    assert not failure or end.failure.startswith(f"JobFailedError: job {record.job_id} of {record.directory} ended as")


def test_sync_without_an_answer_leaves_the_run_alone(fake, record):
    record.changed(state=JobState.RUNNING)
    fake.fail("squeue", "Unable to contact slurm controller (connect failure)")
    assert ended_as(record.directory).status == ""
    (record.folder / "job.json").write_text("{")
    assert ended_as(record.directory).status == ""
