"""One job per directory, whatever happens between the lines; with a scheduler of scripts and a fake clock."""

import threading
import time

import pytest

from bhive_mltf.errors import QueryFailedError, SlurmError, SubmissionError
from bhive_mltf.slurm import dispatch, job, profiles
from bhive_mltf.slurm.client import Slurm
from bhive_mltf.slurm.record import JobRecord, find_all
from bhive_mltf.slurm.states import JobState


@pytest.fixture
def profile(fake):
    return profiles.read_profile("generic", accounting="auto", poll_seconds=0.01)


@pytest.fixture
def make(profile, tmp_path):
    return lambda: job.make_spec(profile, name="a test", kind="command", command=["x"], directory=tmp_path / "out put")


@pytest.fixture
def client():
    return Slurm(fresh_s=0.0)


@pytest.fixture(autouse=True)
def no_waiting(monkeypatch):
    monkeypatch.setattr(dispatch, "LOOK_AGAIN_S", 0.01)
    monkeypatch.setattr(dispatch, "SUBMISSION_ENDS_S", 0.3)


def test_the_record_is_there_before_the_job(fake, profile, make, client, monkeypatch):
    spec = make()
    seen = []
    monkeypatch.setattr(
        client, "submit", lambda script, passed: seen.append(JobRecord.read(spec.directory)) or "5", raising=False
    )
    record = dispatch.submit_or_attach(profile, spec, client)
    assert (seen[0].token, seen[0].job_id) == (spec.token, None)
    assert (record.token, record.job_id) == (spec.token, "5")
    assert JobRecord.read(spec.directory) == record


def test_typed_again_it_attaches(fake, profile, make, client):
    first = dispatch.submit_or_attach(profile, make(), client)
    second = dispatch.submit_or_attach(profile, make(), client)
    assert (second.job_id, second.token) == (first.job_id, first.token)
    assert len(fake.calls("sbatch")) == 1


@pytest.mark.parametrize("state", ["PENDING", "RUNNING", "COMPLETING", "REQUEUE_HOLD", "SUSPENDED", "NODE_FAIL", "ODD"])
def test_a_job_that_is_not_over_is_not_replaced(fake, profile, make, client, state):
    first = dispatch.submit_or_attach(profile, make(), client)
    fake.change(first.job_id, state=state)
    assert dispatch.submit_or_attach(profile, make(), client).job_id == first.job_id
    assert len(fake.calls("sbatch")) == 1


@pytest.mark.parametrize("state", ["COMPLETED", "FAILED", "TIMEOUT", "CANCELLED", "OUT_OF_MEMORY"])
def test_after_a_job_that_is_over_comes_the_next(fake, profile, make, client, state):
    first = dispatch.submit_or_attach(profile, make(), client)
    fake.change(first.job_id, state=state, status=256)
    second = dispatch.submit_or_attach(profile, make(), client)
    assert second.job_id != first.job_id
    (before,) = second.attempts
    assert (before.job_id, before.state, before.token) == (first.job_id, JobState[state], first.token)


def test_a_job_put_back_after_its_time_limit_is_not_replaced(fake, profile, make, client):
    first = dispatch.submit_or_attach(profile, make(), client)
    first.changed(state=JobState.TIMEOUT, ended=time.time())
    second = dispatch.submit_or_attach(profile, make(), client)
    assert (second.job_id, second.is_over) == (first.job_id, False)
    assert len(fake.calls("sbatch")) == 1


def test_a_scheduler_that_does_not_answer_gets_no_second_job(fake, profile, make, client):
    first = dispatch.submit_or_attach(profile, make(), client)
    fake.fail("squeue", "Unable to contact slurm controller (connect failure)")
    assert dispatch.submit_or_attach(profile, make(), client).job_id == first.job_id
    assert len(fake.calls("sbatch")) == 1


def test_a_command_that_died_submitting_leaves_a_job_to_find(fake, profile, make, client):
    first = dispatch.submit_or_attach(profile, make(), client)
    first.changed(job_id=None, submitted=None)
    second = dispatch.submit_or_attach(profile, make(), client)
    assert second.job_id == first.job_id
    assert len(fake.calls("sbatch")) == 1


def test_a_command_that_died_before_submitting_is_replaced(fake, profile, make, client):
    spec = make()
    JobRecord.new(profile, spec, "", None).write()
    began = time.time()
    record = dispatch.submit_or_attach(profile, make(), client)
    assert time.time() - began > 0.2
    assert record.token != spec.token
    assert record.attempts[0].state is JobState.GONE
    assert len(fake.calls("sbatch")) == 1


def test_a_lost_answer_of_sbatch_finds_the_job_in_the_queue(fake, profile, make, client):
    fake.fail("sbatch", "TAKEN Batch job submission failed: Socket timed out on send/recv operation")
    record = dispatch.submit_or_attach(profile, make(), client)
    assert record.job_id in fake.jobs
    assert len(fake.calls("sbatch")) == 1


def test_neither_sbatch_nor_squeue_answers_the_next_finds_out(fake, profile, make, client):
    fake.fail("sbatch", "TAKEN Batch job submission failed: Socket timed out on send/recv operation")
    fake.fail("squeue", "Unable to contact slurm controller (connect failure)")
    with pytest.raises(QueryFailedError, match="squeue failed: squeue: error: Unable to contact"):
        dispatch.submit_or_attach(profile, make(), client)
    fake.fail("squeue", "")
    fake.fail("sbatch", "")
    assert dispatch.submit_or_attach(profile, make(), client).job_id in fake.jobs
    assert len(fake.calls("sbatch")) == 1


def test_a_refusal_is_told_and_binds_nobody(fake, make, client):
    wrong = profiles.read_profile("generic", partition="nowhere")
    with pytest.raises(SubmissionError, match=r"sbatch refused .*job.sh: .*Invalid partition name specified"):
        dispatch.submit_or_attach(wrong, make(), client)
    assert dispatch.submit_or_attach(profiles.read_profile("generic"), make(), client).job_id in fake.jobs


def test_a_machine_without_slurm_says_so(profile, make, client, monkeypatch, tmp_path):
    (tmp_path / "empty").mkdir()
    monkeypatch.setenv("PATH", str(tmp_path / "empty"))
    with pytest.raises(SubmissionError, match="there is no sbatch here"):
        dispatch.submit_or_attach(profile, make(), client)


def test_two_commands_at_once_submit_once(fake, profile, make):
    found = []
    threads = [
        threading.Thread(target=lambda: found.append(dispatch.submit_or_attach(profile, make(), Slurm(fresh_s=0.0))))
        for _ in range(4)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len({record.job_id for record in found}) == 1
    assert len(found) == 4
    assert len(fake.calls("sbatch")) == 1


def test_a_job_id_that_was_given_again_is_another_job(fake, profile, make, client):
    first = dispatch.submit_or_attach(profile, make(), client)
    fake.change(first.job_id, name="somebody", state="RUNNING")
    second = dispatch.submit_or_attach(profile, make(), client)
    assert second.job_id != first.job_id
    assert second.attempts[0].state is JobState.GONE


def test_the_job_sees_few_variables_and_those_of_the_profile(fake, make, client, monkeypatch):
    for name in ("MLFLOW_TRACKING_TOKEN", "X509_USER_PROXY", "SBATCH_PARTITION", "SLURM_JOB_ID"):
        monkeypatch.setenv(name, "secret")
    record = dispatch.submit_or_attach(profiles.read_profile("generic"), make(), client)
    seen = fake.jobs[record.job_id]["environment"]
    assert seen["X509_USER_PROXY"] == "secret"
    assert not {"MLFLOW_TRACKING_TOKEN", "SBATCH_PARTITION", "SLURM_JOB_ID"} & set(seen)
    assert fake.jobs[record.job_id]["folder"] == str(record.folder)


def test_a_damaged_record_is_an_error_and_not_a_second_job(fake, profile, make, client):
    spec = make()
    dispatch.submit_or_attach(profile, spec, client)
    (spec.folder / "job.json").write_text("{")
    with pytest.raises(SlurmError, match="is not a record of a job"):
        dispatch.submit_or_attach(profile, make(), client)
    assert len(fake.calls("sbatch")) == 1


def test_records_below_a_folder(fake, profile, make, client, tmp_path):
    record = dispatch.submit_or_attach(profile, make(), client)
    assert list(find_all(tmp_path)) == [record]


def test_a_record_that_was_moved_is_where_it_is_now(fake, profile, make, client, tmp_path):
    record = dispatch.submit_or_attach(profile, make(), client)
    record.directory.rename(tmp_path / "elsewhere")
    assert JobRecord.read(tmp_path / "elsewhere").directory == tmp_path / "elsewhere"
