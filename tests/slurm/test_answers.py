"""Outputs as SLURM 22.05 printed them."""

import time

import pytest

from bhive_mltf.errors import QueryFailedError, SubmissionError
from bhive_mltf.slurm import parsing
from bhive_mltf.slurm.states import JobState

SQUEUE = """\
2|PENDING|JobHeldUser|0|0|2026-11-25T10:24:07|N/A||main|bhive-abc|
3_1|RUNNING|None|0|2|2026-11-25T10:24:07|2026-11-25T10:24:08|n[1-2]|main|bhive-abc1234567890123456789012345|
8|FAILED|NonZeroExitCode|768|0|2026-11-25T10:25:22|2026-11-25T10:25:22|n1|main|odd|name|
9|CANCELLED|None|15|0|2026-11-25T10:25:22|2026-11-25T10:25:22|n1|main|b.sh|
"""
SACCT = """\
12|TIMEOUT|0:0|2026-11-25T10:24:07|2026-11-25T10:24:09|n1|main|bhive-abc
13|CANCELLED by 0|0:15|2026-11-25T10:24:07|None|None assigned|main|bhive-def
"""
SCONTROL = """JobId=1 JobName=bhive-abc UserId=root(0) Requeue=1 Restarts=1 JobState=PENDING Reason=BeginTime \
ExitCode=0:53 SubmitTime=2026-11-25T10:24:08 StartTime=2026-11-25T10:24:14 EndTime=Unknown Partition=main \
NodeList= Command=/data/JobState=FAILED ExitCode=9:9/job.sh WorkDir=/data/a b
c
"""


def test_squeue():
    held, running, failed, cancelled = parsing.squeue(SQUEUE)
    assert (held.state, held.reason, held.start, held.nodes) == (JobState.PENDING, "JobHeldUser", None, "")
    assert (running.job_id, running.restarts, running.nodes) == ("3_1", 2, "n[1-2]")
    assert running.name == "bhive-abc1234567890123456789012345"
    assert time.strftime("%H:%M:%S", time.localtime(running.start)) == "10:24:08"
    assert (failed.exit_code, failed.name) == (3, "odd|name")
    assert (cancelled.exit_code, cancelled.reason) == (0, "")


def test_squeue_without_jobs():
    assert parsing.squeue("\n") == []


def test_a_line_that_is_no_job_is_no_answer():
    with pytest.raises(QueryFailedError, match="which is no job"):
        parsing.squeue("slurm_load_jobs error: nothing\n")


def test_sacct():
    timeout, cancelled = parsing.sacct(SACCT)
    assert (timeout.state, timeout.exit_code, timeout.name) == (JobState.TIMEOUT, 0, "bhive-abc")
    assert (cancelled.state, cancelled.nodes, cancelled.start) == (JobState.CANCELLED, "", None)


def test_scontrol_reads_no_fields_out_of_paths():
    info = parsing.scontrol(SCONTROL, "1")
    assert (info.state, info.reason, info.restarts) == (JobState.PENDING, "BeginTime", 1)
    assert (info.exit_code, info.nodes, info.partition) == (0, "", "main")


@pytest.mark.parametrize("text", ["17\n", "17;cluster\n", "a word of the site\n17\n"])
def test_job_id(text):
    assert parsing.job_id(text) == "17"


@pytest.mark.parametrize("text", ["", "Submitted batch job", "17a"])
def test_no_job_id(text):
    with pytest.raises(SubmissionError, match="which has no job id"):
        parsing.job_id(text)
