"""Following a job: what is shown, what is believed, how Ctrl-C ends it."""

import io
import json

import pytest
from rich.console import Console

from bhive_mltf.errors import JobFailedError
from bhive_mltf.ranks.files import RankProgress
from bhive_mltf.slurm import dispatch, display, job, profiles
from bhive_mltf.slurm.client import Slurm
from bhive_mltf.slurm.display import describe_progress, duration
from bhive_mltf.slurm.follow import follow
from bhive_mltf.slurm.interrupts import Detached
from bhive_mltf.slurm.parsing import JobInfo
from bhive_mltf.slurm.record import JobRecord
from bhive_mltf.slurm.states import JobState


@pytest.fixture
def record(fake, tmp_path):
    profile = profiles.read_profile("generic", accounting=False)
    spec = job.make_spec(profile, name="a test", kind="command", command=["x"], directory=tmp_path / "out")
    return dispatch.submit_or_attach(profile, spec, Slurm())


@pytest.fixture
def watch(record, clock):
    """Follow the job and do one step per wait; what was shown."""

    def run(*steps, poll_s=1.0):
        stream = io.StringIO()
        left = list(steps)
        clock.then = lambda: left.pop(0)() if left else None
        client = Slurm(accounting=False, fresh_s=0.0)
        try:
            follow(record, client, poll_s=poll_s, display=display.Lines(stream), clock=clock)
        finally:
            run.shown = stream.getvalue()
        return run.shown

    return run


def write(record, name, **content):
    (record.folder / name).write_text(json.dumps(content))


def nothing():
    pass


def test_a_job_that_does_its_work(fake, record, watch):
    shown = watch(
        lambda: fake.change(record.job_id, state="RUNNING", reason="None"),
        lambda: write(record, "progress.json", epoch=1, of_epochs=3, step=1234, jets_per_s=5000.0, eta_s=95),
        nothing,
        lambda: fake.change(record.job_id, state="COMPLETING"),
        nothing,
        lambda: fake.change(record.job_id, state="COMPLETED"),
    )
    assert shown.splitlines() == [
        f"job {record.job_id} waits behind jobs of higher priority, position 1 in the queue",
        f"job {record.job_id} runs on n1",
        "epoch 1 of 3, step 1,234, 5,000 jets/s, 1 min left",
        f"job {record.job_id} is ending",
        f"job {record.job_id} ended: COMPLETED",
    ]
    assert JobRecord.read(record.directory).is_over


def test_a_job_that_goes_back_into_the_queue_is_followed_on(fake, record, watch):
    shown = watch(
        lambda: fake.change(record.job_id, state="RUNNING"),
        lambda: fake.change(record.job_id, state="COMPLETING"),
        lambda: fake.change(record.job_id, state="PENDING", reason="BeginTime", restarts=1),
        lambda: fake.change(record.job_id, state="RUNNING"),
        lambda: fake.change(record.job_id, state="COMPLETED"),
        poll_s=0.5,
    )
    assert "waits until it may start again, position 1 in the queue, attempt 2" in shown
    assert JobRecord.read(record.directory).restarts == 1


@pytest.mark.parametrize("state", ["NODE_FAIL", "PREEMPTED", "BOOT_FAIL"])
def test_what_the_site_took_away_comes_back(fake, record, watch, state):
    watch(
        lambda: fake.change(record.job_id, state=state),
        nothing,
        lambda: fake.change(record.job_id, state="PENDING", restarts=1),
        lambda: fake.change(record.job_id, state="COMPLETED"),
    )


def test_what_the_site_took_away_for_good_is_an_error(fake, record, watch, clock):
    before = clock.time
    with pytest.raises(JobFailedError, match="ended as NODE_FAIL: one of its nodes failed"):
        watch(lambda: fake.change(record.job_id, state="NODE_FAIL"))
    assert clock.time - before > 15


@pytest.mark.parametrize("reason", ["launch failed requeued held", "launch_failed_requeued_held"])
def test_a_job_that_is_held_since_its_launch_failed_is_released_once(fake, record, watch, reason):
    held = "job 100 is held (launch"

    def again():
        assert fake.jobs[record.job_id]["reason"] == "None"
        fake.change(record.job_id, reason=reason)

    shown = watch(
        lambda: fake.change(record.job_id, reason=reason, restarts=1),
        nothing,
        again,
        nothing,
        lambda: fake.change(record.job_id, state="COMPLETED", reason="None"),
    )
    assert shown.count("job 100 could not be started on its node and was held: released") == 1
    assert shown.count(held) == 1, "held again, it waits for its user"
    assert [call[1] for call in fake.calls("scontrol")].count("release") == 1


def test_a_job_that_its_user_holds_stays_held(fake, record, watch):
    shown = watch(
        lambda: fake.change(record.job_id, reason="JobHeldUser"),
        nothing,
        lambda: fake.change(record.job_id, state="COMPLETED"),
    )
    assert "job 100 is held (JobHeldUser): 'scontrol release 100' lets it go on" in shown
    assert not fake.calls("scontrol")


@pytest.fixture
def ranks(fake, tmp_path):
    """A job of ranks, which may have three attempts."""
    profile = profiles.read_profile("generic", accounting=False, max_attempts=3)
    spec = job.make_spec(profile, name="a test", kind="ranks", command=["x"], directory=tmp_path / "ranks")
    return dispatch.submit_or_attach(profile, spec, Slurm())


def test_ranks_that_get_on_are_put_back_without_having_saved(fake, ranks, clock):
    """Three attempts at most, and none after one that got no further than the one before."""
    for steps, requeues in (((5, 9, 12), 2), ((5, 5), 1), ((0,), 1)):
        ranks.changed(ended=None, state=JobState.RUNNING, timeout_step=-1)
        fake.change(ranks.job_id, state="RUNNING", restarts=0)
        left, before = list(steps), len(fake.calls("scontrol"))

        def limit(left=left, last=steps[-1]):
            if fake.jobs[ranks.job_id]["state"] in ("PENDING", "RUNNING"):
                write(ranks, "progress.json", step=left.pop(0) if left else last, time=1.0)
                fake.change(ranks.job_id, state="TIMEOUT")

        clock.then = limit
        with pytest.raises(JobFailedError, match="it reached its time limit"):
            follow(JobRecord.read(ranks.directory), Slurm(accounting=False, fresh_s=0.0), poll_s=1.0, clock=clock)
        assert len(fake.calls("scontrol")) == before + requeues
    assert len(fake.calls("sbatch")) == 1


def test_a_job_put_back_by_another_command_is_just_followed(fake, ranks, clock, monkeypatch):
    fake.change(ranks.job_id, state="TIMEOUT")
    forget = Slurm.forget

    def meanwhile(client):
        fake.change(ranks.job_id, state="RUNNING", restarts=1)
        clock.then = lambda: fake.change(ranks.job_id, state="COMPLETED")
        forget(client)

    monkeypatch.setattr(Slurm, "forget", meanwhile)
    follow(ranks, Slurm(accounting=False, fresh_s=0.0), poll_s=1.0, clock=clock)
    assert not fake.calls("scontrol")


@pytest.mark.parametrize(
    ("state", "message"),
    [
        ("TIMEOUT", "it reached its time limit"),
        ("OUT_OF_MEMORY", "it needed more memory"),
        ("CANCELLED", "it was cancelled"),
        ("FAILED", "it failed with exit code 3"),
        ("DEADLINE", "its deadline passed"),
    ],
)
def test_an_end_without_a_result_names_state_and_log(fake, record, watch, state, message):
    (record.folder / f"job_{record.job_id}.log").write_text("".join(f"line {n}\n" for n in range(40)))
    with pytest.raises(JobFailedError, match=message) as caught:
        watch(lambda: fake.change(record.job_id, state=state, status=3 << 8))
    text = str(caught.value)
    assert f"job {record.job_id} of {record.directory}" in text
    assert text.endswith("    line 39")
    assert "line 20" not in text


def test_the_jobs_own_reason_is_told(fake, record, watch):
    write(record, "outcome.json", token=record.token, outcome="failed", reason="rank 1 failed (ValueError: no)", time=1)
    with pytest.raises(JobFailedError, match=r"exit code 1 \(rank 1 failed \(ValueError: no\)\)"):
        watch(lambda: fake.change(record.job_id, state="FAILED", status=256))


def test_a_job_without_outcome_file_is_judged_by_its_exit_code(fake, record, watch):
    with pytest.raises(JobFailedError, match="exit code 74 .no space is left where the outputs go: make room"):
        watch(lambda: fake.change(record.job_id, state="FAILED", status=74 << 8))


def test_the_word_of_an_earlier_job_says_nothing(fake, record, watch):
    write(record, "outcome.json", token="another", outcome="done", reason="done", time=1)
    fake.forget(record.job_id)
    with pytest.raises(JobFailedError, match="no longer knows it"):
        watch()


def test_a_job_that_the_scheduler_forgot_is_done_when_it_said_so(fake, record, watch):
    write(record, "outcome.json", token=record.token, outcome="done", reason="done", time=1)
    fake.forget(record.job_id)
    watch()
    assert JobRecord.read(record.directory).state is JobState.GONE


def test_completed_without_its_work_done_is_an_error(fake, record, watch):
    write(record, "outcome.json", token=record.token, outcome="stopped", reason="saved", requeued=True, time=1)
    with pytest.raises(JobFailedError, match="it ended without its work being done"):
        watch(lambda: fake.change(record.job_id, state="COMPLETED"))


def test_a_minute_without_answers_changes_nothing(fake, record, watch, clock):
    def back():
        if clock.time < 1090:
            clock.then = back
            return
        fake.fail("squeue", "")
        fake.change(record.job_id, state="COMPLETED")
        clock.then = nothing

    def away():
        fake.fail("squeue", "Unable to contact slurm controller (connect failure)")
        clock.then = back

    shown = watch(away)
    assert clock.time > 1090
    assert shown.count("the job may go on, asking again") == 1
    assert shown.count("the scheduler answers again") == 1


def test_polls_grow_rare(fake, record, watch, clock):
    def end():
        fake.change(record.job_id, state="COMPLETED")
        clock.then = nothing

    def running():
        clock.then = end if clock.time > 1600 else running

    fake.change(record.job_id, state="RUNNING")
    watch(running, poll_s=10.0)
    # every 10 s it would be 60
    assert len(fake.calls("squeue")) < 20


def test_a_word_of_the_job_is_asked_about_at_once(fake, record, watch, clock):
    def end():
        write(record, "outcome.json", token=record.token, outcome="done", reason="done", time=5)
        fake.change(record.job_id, state="COMPLETED")
        clock.then = nothing

    fake.change(record.job_id, state="RUNNING")
    watch(nothing, nothing, end, poll_s=1000.0)
    assert clock.time < 1010


def test_ctrl_c_leaves_the_job_alone(fake, record, watch, clock):
    with pytest.raises(Detached, match="goes on: the same command attaches to it again, 'bhive-mltf slurm cancel"):
        watch(lambda: setattr(clock, "count", 1))
    assert fake.jobs[record.job_id]["state"] == "PENDING"
    assert not JobRecord.read(record.directory).is_over


@pytest.mark.parametrize(("answer", "state"), [(True, "CANCELLED"), (False, "PENDING")])
def test_ctrl_c_twice_offers_to_cancel(fake, record, watch, clock, answer, state):
    clock.twice, clock.answer = True, answer
    with pytest.raises(Detached):
        watch(lambda: setattr(clock, "count", 2))
    assert fake.jobs[record.job_id]["state"] == state


@pytest.mark.parametrize(
    ("info", "text"),
    [
        (
            JobInfo("7", JobState.PENDING, reason="Resources", position=3, start=1000 + 7500.0),
            "job 7 waits for free nodes, position 3 in the queue, expected to start in 2 h 05 min",
        ),
        (JobInfo("7", JobState.PENDING, reason="Odd"), "job 7 waits (Odd)"),
        (JobInfo("7", JobState.REQUEUE_HOLD), "job 7 is held (REQUEUE_HOLD): 'scontrol release 7' lets it go on"),
        (
            JobInfo("7", JobState.PENDING, reason="job requeued in special exit state"),
            "job 7 is held (job requeued in special exit state): 'scontrol release 7' lets it go on",
        ),
        (
            JobInfo("7", JobState.RUNNING, nodes="n[1-2]", start=400.0, restarts=2),
            "job 7 runs on n[1-2] for 10 min, attempt 3",
        ),
        (JobInfo("7", JobState.SUSPENDED, nodes="n1"), "job 7 is suspended on n1"),
        (JobInfo("7", JobState.UNKNOWN), "job 7: the scheduler gives no answer"),
    ],
)
def test_states_in_words(info, text):
    assert display.describe(info, now=1000.0) == text


@pytest.mark.parametrize(
    ("seconds", "text"), [(-3, "0 s"), (59, "59 s"), (61, "1 min"), (3900, "1 h 05 min"), (200000, "2 d 7 h")]
)
def test_durations(seconds, text):
    assert duration(seconds) == text


def test_a_narrow_terminal_shows_state_and_progress_in_two_lines():
    stream = io.StringIO()
    live = display.Live(Console(file=stream, force_terminal=True, width=60))
    live.state(JobInfo("7", JobState.RUNNING, nodes="n[1-2]", restarts=2))
    live.progress(RankProgress(epoch=1, of_epochs=3))
    assert str(live._status.status) == "job 7 runs on n[1-2], attempt 3: epoch 1 of 3"
    live.progress(RankProgress(epoch=1, of_epochs=3, step=1234, jets_per_s=5000.0))
    assert str(live._status.status) == "job 7 runs on n[1-2], attempt 3:\n  epoch 1 of 3, step 1,234, 5,000 jets/s"
    live.close()


def test_silent_ranks_are_told():
    progress = RankProgress(epoch=1, of_epochs=2, step=5, time=1000.0)
    assert describe_progress(progress, now=1600.0) == "epoch 1 of 2, step 5, nothing new for 10 min"


def test_half_written_progress_is_none(tmp_path):
    (tmp_path / "progress.json").write_text('{"epoch": 1')
    assert RankProgress.read(tmp_path) is None
