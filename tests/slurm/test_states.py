"""Recorded words of squeue (long and short), sacct and scontrol, and what each means."""

import pytest

from bhive_mltf.slurm.states import JobState

WAITS, RUNS, OVER, NOTHING = "waits", "runs", "over", "nothing"
# word, state, what it is, status of the MLflow run
TABLE = [
    ("PENDING", "PENDING", WAITS, "SCHEDULED"),
    ("PD", "PENDING", WAITS, "SCHEDULED"),
    ("REQUEUED", "REQUEUED", WAITS, "SCHEDULED"),
    ("RQ", "REQUEUED", WAITS, "SCHEDULED"),
    ("REQUEUE_FED", "REQUEUE_FED", WAITS, "SCHEDULED"),
    ("RF", "REQUEUE_FED", WAITS, "SCHEDULED"),
    ("REQUEUE_HOLD", "REQUEUE_HOLD", WAITS, "SCHEDULED"),
    ("RH", "REQUEUE_HOLD", WAITS, "SCHEDULED"),
    ("SPECIAL_EXIT", "SPECIAL_EXIT", WAITS, "SCHEDULED"),
    ("SE", "SPECIAL_EXIT", WAITS, "SCHEDULED"),
    ("RESV_DEL_HOLD", "RESV_DEL_HOLD", WAITS, "SCHEDULED"),
    ("RD", "RESV_DEL_HOLD", WAITS, "SCHEDULED"),
    ("CONFIGURING", "CONFIGURING", RUNS, "RUNNING"),
    ("CF", "CONFIGURING", RUNS, "RUNNING"),
    ("POWER_UP_NODE", "POWER_UP_NODE", RUNS, "RUNNING"),
    ("RUNNING", "RUNNING", RUNS, "RUNNING"),
    ("R", "RUNNING", RUNS, "RUNNING"),
    ("SUSPENDED", "SUSPENDED", RUNS, "RUNNING"),
    ("S", "SUSPENDED", RUNS, "RUNNING"),
    ("STOPPED", "STOPPED", RUNS, "RUNNING"),
    ("ST", "STOPPED", RUNS, "RUNNING"),
    ("RESIZING", "RESIZING", RUNS, "RUNNING"),
    ("RS", "RESIZING", RUNS, "RUNNING"),
    ("SIGNALING", "SIGNALING", RUNS, "RUNNING"),
    ("SI", "SIGNALING", RUNS, "RUNNING"),
    ("COMPLETING", "COMPLETING", RUNS, "RUNNING"),
    ("CG", "COMPLETING", RUNS, "RUNNING"),
    ("STAGE_OUT", "STAGE_OUT", RUNS, "RUNNING"),
    ("SO", "STAGE_OUT", RUNS, "RUNNING"),
    ("UPDATE_DB", "UPDATE_DB", RUNS, "RUNNING"),
    ("UD", "UPDATE_DB", RUNS, "RUNNING"),
    ("EXPEDITING", "EXPEDITING", RUNS, "RUNNING"),
    ("COMPLETED", "COMPLETED", OVER, "FINISHED"),
    ("CD", "COMPLETED", OVER, "FINISHED"),
    ("CANCELLED", "CANCELLED", OVER, "KILLED"),
    ("CANCELLED by 1000", "CANCELLED", OVER, "KILLED"),
    ("CANCELLED+", "CANCELLED", OVER, "KILLED"),
    ("CA", "CANCELLED", OVER, "KILLED"),
    ("FAILED", "FAILED", OVER, "FAILED"),
    ("F", "FAILED", OVER, "FAILED"),
    ("TIMEOUT", "TIMEOUT", OVER, "FAILED"),
    ("TO", "TIMEOUT", OVER, "FAILED"),
    ("OUT_OF_MEMORY", "OUT_OF_MEMORY", OVER, "FAILED"),
    ("OUT_OF_ME+", "OUT_OF_MEMORY", OVER, "FAILED"),
    ("OOM", "OUT_OF_MEMORY", OVER, "FAILED"),
    ("DEADLINE", "DEADLINE", OVER, "FAILED"),
    ("DL", "DEADLINE", OVER, "FAILED"),
    ("NODE_FAIL", "NODE_FAIL", OVER, "FAILED"),
    ("NF", "NODE_FAIL", OVER, "FAILED"),
    ("BOOT_FAIL", "BOOT_FAIL", OVER, "FAILED"),
    ("BF", "BOOT_FAIL", OVER, "FAILED"),
    ("LAUNCH_FAILED", "LAUNCH_FAILED", OVER, "FAILED"),
    ("LF", "LAUNCH_FAILED", OVER, "FAILED"),
    ("PREEMPTED", "PREEMPTED", OVER, "KILLED"),
    ("PR", "PREEMPTED", OVER, "KILLED"),
    ("REVOKED", "REVOKED", OVER, "KILLED"),
    ("RV", "REVOKED", OVER, "KILLED"),
    ("  RUNNING   ", "RUNNING", RUNS, "RUNNING"),
    # none of SLURM's words is a verdict
    ("", "UNKNOWN", NOTHING, None),
    ("RE+", "UNKNOWN", NOTHING, None),
    ("LEVITATING", "UNKNOWN", NOTHING, None),
    ("GONE", "UNKNOWN", NOTHING, None),
    ("UNKNOWN", "UNKNOWN", NOTHING, None),
    ("slurm_load_jobs error: Unable to contact slurm controller", "UNKNOWN", NOTHING, None),
]


@pytest.mark.parametrize(("word", "name", "kind", "run_status"), TABLE)
def test_every_word_means_one_state(word, name, kind, run_status):
    state = JobState.parse(word)
    assert state == JobState[name]
    seen = {WAITS: state.is_waiting, RUNS: state.is_running, OVER: state.is_final}
    assert seen == {what: what == kind for what in seen}
    assert state.run_status == run_status


def test_the_table_has_every_state():
    assert {name for _, name, _, _ in TABLE} | {"GONE"} == set(JobState.__members__)


def test_a_job_unknown_to_the_scheduler_is_over_unjudged():
    assert JobState.GONE.is_final
    assert JobState.GONE.run_status is None


def test_what_the_site_takes_away_may_come_back():
    assert {state.name for state in JobState if state.may_requeue} == {
        "NODE_FAIL",
        "BOOT_FAIL",
        "LAUNCH_FAILED",
        "PREEMPTED",
    }
