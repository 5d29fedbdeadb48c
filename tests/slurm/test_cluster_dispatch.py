"""One job per directory, on the real cluster."""

import io
import json
import os
import pty
import pwd
import shutil
import signal
import subprocess
import sys
import tempfile
import textwrap
import time
from pathlib import Path

import pytest

from bhive_mltf.errors import JobFailedError, SubmissionError
from bhive_mltf.slurm import dispatch, job, profiles
from bhive_mltf.slurm.batch_step import preflight
from bhive_mltf.slurm.client import Slurm
from bhive_mltf.slurm.display import Lines
from bhive_mltf.slurm.follow import follow
from bhive_mltf.slurm.record import JobRecord
from bhive_mltf.slurm.states import JobState
from bhive_mltf.testing import slurm_lab
from tests.helpers.slurm_trainings import read_until
from tests.helpers.waiting import wait_for
from tests.slurm.conftest import programs, start_lab

pytestmark = pytest.mark.slurm
REPOSITORY = Path(__file__).parents[2]
FOLLOW = textwrap.dedent("""
    import sys
    from pathlib import Path
    from bhive_mltf.slurm import dispatch, job, profiles
    from bhive_mltf.slurm.client import Slurm
    from bhive_mltf.slurm.follow import follow

    profile = profiles.read_profile("local-lab", poll_seconds=0.5)
    spec = job.make_spec(
        profile, name="t", kind="command", command=sys.argv[2:], directory=Path(sys.argv[1]),
        environment={"PYTHONPATH": __import__("os").environ["PYTHONPATH"]},
    )
    record = dispatch.submit_or_attach(profile, spec, Slurm.of(profile))
    print("job", record.job_id, flush=True)
    follow(record, Slurm.of(profile), poll_s=0.5)
    print("done", flush=True)
""")


def spec(profile, directory, *command):
    settings = {"name": "a test", "kind": "command", "environment": {"PYTHONPATH": str(REPOSITORY)}}
    return job.make_spec(profile, command=command, directory=directory, **settings)


def start(directory, *command, before=(), terminal=None, **environment):
    """A command that submits or attaches, and follows, in a process of its own; at a terminal if one is given."""
    before = before if terminal is None else ["setsid", "--ctty", "--wait"]
    return subprocess.Popen(
        [*before, sys.executable, "-c", FOLLOW, str(directory), *command],
        env={**os.environ, "PYTHONPATH": str(REPOSITORY), **environment},
        stdin=terminal,
        stdout=subprocess.PIPE if terminal is None else terminal,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=terminal is None,
    )


def state_of(client, record):
    client.forget()
    return client.query([record.job_id])[record.job_id].state


def submit_and_follow(profile, client, directory, *command):
    record = dispatch.submit_or_attach(profile, spec(profile, directory, *command), client)
    return follow(record, client, poll_s=0.5, display=Lines())


def test_two_login_nodes_submit_one_job_and_both_follow_it(cluster, tmp_path):
    before = cluster.submissions()
    other = ["unshare", "--uts", "bash", "-c", 'hostname login2 && exec "$@"', "bash"]
    if subprocess.run([*other, "true"], capture_output=True, check=False).returncode:
        other = []
    command = ("bash", "-c", f"echo run >> '{tmp_path}/runs'; sleep 3")
    both = [start(tmp_path, *command), start(tmp_path, *command, before=other)]
    outputs = [process.communicate(timeout=90)[0] for process in both]
    assert [process.returncode for process in both] == [0, 0], outputs
    lines = [line for output in outputs for line in output.splitlines()]
    jobs = {line for line in lines if line.startswith("job ") and line.count(" ") == 1}
    assert len(jobs) == 1
    assert all(output.endswith("done\n") for output in outputs)
    assert cluster.submissions() == before + 1
    assert (tmp_path / "runs").read_text() == "run\n"


def test_a_killed_command_leaves_a_job_that_the_next_follows(cluster, client, tmp_path):
    before = cluster.submissions()
    first = start(tmp_path, "bash", "-c", "sleep 4")
    wait_for(lambda: (record := JobRecord.read(tmp_path)) and record.job_id)
    os.killpg(first.pid, signal.SIGKILL)
    first.communicate()
    output, _ = (second := start(tmp_path, "bash", "-c", "sleep 4")).communicate(timeout=90)
    assert (second.returncode, cluster.submissions()) == (0, before + 1), output


def test_a_command_killed_at_sbatch_leaves_a_job_to_find(cluster, client, tmp_path):
    before = cluster.submissions()
    programs = tmp_path / "bin"
    programs.mkdir()
    call = f'"{shutil.which("sbatch")}" "$@" > "{tmp_path}/answer"; touch "{tmp_path}/taken"; sleep 60'
    (programs / "sbatch").write_text(f"#!/bin/bash\n{call}\n")
    (programs / "sbatch").chmod(0o755)
    out = tmp_path / "out"
    first = start(out, "sleep", "2", PATH=f"{programs}:{os.environ['PATH']}")
    wait_for((tmp_path / "taken").exists)
    os.killpg(first.pid, signal.SIGKILL)
    first.communicate()
    assert JobRecord.read(out).job_id is None
    output, _ = (second := start(out, "sleep", "2")).communicate(timeout=90)
    assert second.returncode == 0, output
    assert JobRecord.read(out).job_id == (tmp_path / "answer").read_text().strip()
    assert cluster.submissions() == before + 1


def test_a_directory_with_all_kinds_of_characters(cluster, profile, client, tmp_path):
    out = tmp_path / 'it\'s "a"\n$(touch x) ü; # % \\ dir'
    command = ("bash", "-c", 'printf "%s" "$1" > "$2"', "x", "a b\n'", f"{out}/seen")
    record = submit_and_follow(profile, client, out, *command)
    assert (out / "seen").read_text() == "a b\n'"
    assert record.state is JobState.COMPLETED
    assert record.log.exists()


def test_a_folder_that_is_a_pattern_for_slurm(cluster, profile, client, tmp_path):
    record = submit_and_follow(profile, client, tmp_path / "50%j", "echo", "hello")
    assert "hello" in record.log.read_text()
    assert [path.name for path in tmp_path.iterdir()] == ["50%j"]


def test_a_job_that_fails_before_python_starts(cluster, client, tmp_path):
    profile = profiles.read_profile("local-lab", setup=["echo the module system is down", "exit 3"])
    with pytest.raises(JobFailedError, match="failed with exit code 3") as caught:
        submit_and_follow(profile, client, tmp_path, "true")
    assert "    the module system is down" in str(caught.value)


def test_an_interpreter_that_is_not_there(cluster, client, tmp_path):
    profile = profiles.read_profile("local-lab", python="/nowhere/python")
    with pytest.raises(JobFailedError, match=r"(?s)exit code 127.*/nowhere/python"):
        submit_and_follow(profile, client, tmp_path, "true")


def test_a_command_that_fails(cluster, profile, client, tmp_path):
    with pytest.raises(JobFailedError, match=r"(?s)ended as FAILED.*a word of the command"):
        submit_and_follow(profile, client, tmp_path, "bash", "-c", "echo a word of the command >&2; exit 7")


def test_a_refused_job_says_what_slurm_said(cluster, client, tmp_path):
    profile = profiles.read_profile("local-lab", partition="nowhere")
    with pytest.raises(SubmissionError, match="invalid partition specified: nowhere|Invalid partition name"):
        dispatch.submit_or_attach(profile, spec(profile, tmp_path, "true"), client)


def test_cancelled_while_it_waits_and_while_it_runs(cluster, profile, client, tmp_path):
    held = profiles.read_profile("local-lab", options={"hold": True})
    waiting = dispatch.submit_or_attach(held, spec(held, tmp_path / "a", "true"), client)
    running = dispatch.submit_or_attach(profile, spec(profile, tmp_path / "b", "sleep", "100"), client)
    wait_for(lambda: state_of(client, running) is JobState.RUNNING)
    for record in (waiting, running):
        ended = dispatch.cancel(record, client)
        assert (ended.state, ended.is_over) == (JobState.CANCELLED, True)
        with pytest.raises(JobFailedError, match="ended as CANCELLED: it was cancelled"):
            follow(ended, client)


def test_cancelled_by_others_while_it_is_followed(cluster, profile, client, tmp_path):
    process = start(tmp_path, "sleep", "100")
    record = wait_for(lambda: (found := JobRecord.read(tmp_path)) and found.job_id and found)
    wait_for(lambda: state_of(client, record) is JobState.RUNNING)
    assert cluster.run("scancel", record.job_id).returncode == 0
    output, _ = process.communicate(timeout=60)
    assert process.returncode == 1
    assert "ended as CANCELLED" in output


def test_ctrl_c_leaves_the_job_and_twice_offers_to_cancel_it(cluster, client, tmp_path):
    process = start(tmp_path, "sleep", "100")
    record = wait_for(lambda: (found := JobRecord.read(tmp_path)) and found.job_id and found)
    wait_for(lambda: state_of(client, record) is JobState.RUNNING)
    time.sleep(1)
    process.send_signal(signal.SIGINT)
    output, _ = process.communicate(timeout=30)
    assert f"Detached: job {record.job_id} goes on" in output
    assert state_of(client, record) is JobState.RUNNING

    person, terminal = pty.openpty()
    process = start(tmp_path, "sleep", "100", terminal=terminal)
    os.close(terminal)
    seen = b""
    for awaited, typed in ((b" runs on ", b"\x03"), (b"Ctrl-C again to cancel it", b"\x03"), (b" [y/N] ", b"y\n")):
        while awaited not in seen:
            seen += os.read(person, 1024)
        os.write(person, typed)
        seen = b""
    assert process.wait(timeout=60) == 1
    assert state_of(client, record) is JobState.CANCELLED
    os.close(person)


def test_the_controller_dies_and_comes_back(cluster, client, tmp_path):
    before = cluster.submissions()
    process = start(
        tmp_path, "bash", "-c", f"touch '{tmp_path}/begun'; until [ -e '{tmp_path}/go' ]; do sleep 0.2; done"
    )
    record = wait_for(lambda: (found := JobRecord.read(tmp_path)) and found.job_id and found)
    wait_for((tmp_path / "begun").exists)
    cluster.kill_controller(after_saving=record.job_id)
    read_until(process, "the job may go on, asking again")
    cluster.start_controller()
    (tmp_path / "go").touch()  # it outlasts the controller, however slow that one is to save
    output, _ = process.communicate(timeout=120)
    assert process.returncode == 0, output
    assert "the scheduler answers again" in output
    assert cluster.submissions() == before + 1


def test_a_job_that_is_held_since_its_launch_failed_is_released(cluster, client, tmp_path):
    profile = profiles.read_profile("local-lab", options={"begin": "now+4", "nodelist": "n2"}, poll_seconds=0.5)
    record = dispatch.submit_or_attach(profile, spec(profile, tmp_path, "true"), client)
    # where the node's daemon wants a folder for the job's script
    in_its_way = cluster.directory / "spool.n2" / f"job{record.job_id}"
    in_its_way.touch()

    class Mending(Lines):
        def say(self, text):
            if "released" in text:
                in_its_way.unlink()
            super().say(text)

    stream = io.StringIO()
    ended = follow(record, client, poll_s=0.5, display=Mending(stream))
    assert f"job {record.job_id} could not be started on its node and was held: released" in stream.getvalue()
    assert (ended.state, ended.was_released) == (JobState.COMPLETED, True), stream.getvalue()


def test_the_place_in_the_queue(cluster, profile, client, tmp_path):
    held = profiles.read_profile("local-lab", options={"begin": "now+600"})
    records = [dispatch.submit_or_attach(held, spec(held, tmp_path / name, "true"), client) for name in "ab"]
    assert [client.position(record.job_id, "main") for record in records] == [1, 2]


def test_a_job_is_put_back_into_the_queue_when_its_node_fails(cluster, profile, client, tmp_path):
    command = ("bash", "-c", f"echo x >> '{tmp_path}/starts'; [ $(wc -l < '{tmp_path}/starts') -gt 1 ] || sleep 100")
    record = dispatch.submit_or_attach(profile, spec(profile, tmp_path, *command), client)
    wait_for((tmp_path / "starts").exists)
    node = client.query([record.job_id])[record.job_id].nodes or cluster.settings.nodes[0][0]
    assert cluster.run("scontrol", "update", f"nodename={node}", "state=down", "reason=test").returncode == 0
    ended = follow(record, client, poll_s=0.5, display=Lines())
    assert (ended.state, ended.restarts) == (JobState.COMPLETED, 1)
    assert (tmp_path / "starts").read_text() == "x\nx\n"


@pytest.mark.parametrize("accounting", [False, True])
def test_a_job_that_the_controller_has_forgotten(accounting, tmp_path, monkeypatch):
    cluster = start_lab(accounting=accounting, keep_jobs_s=2)
    try:
        monkeypatch.setenv("BHIVE_SLURM_LAB", str(cluster.directory))
        profile = profiles.read_profile("local-lab")
        client = Slurm.of(profile)
        good = dispatch.submit_or_attach(profile, spec(profile, tmp_path / "good", "true"), client)
        bad = dispatch.submit_or_attach(profile, spec(profile, tmp_path / "bad", "false"), client)
        wait_for(lambda: "Invalid job id" in cluster.run("scontrol", "show", "job", bad.job_id).stderr, 120)
        wait_for(lambda: "Invalid job id" in cluster.run("scontrol", "show", "job", good.job_id).stderr, 120)
        states = (JobState.COMPLETED, JobState.FAILED) if accounting else (JobState.GONE, JobState.GONE)
        with monkeypatch.context() as patch:
            if not accounting:
                # a host without the program, for the first of them
                patch.setenv("PATH", programs(tmp_path / "bin", without=["sacct"]))
                assert not shutil.which("sacct")
            assert follow(good, client, poll_s=0.5).state is states[0]
        with pytest.raises(JobFailedError, match=f"ended as {states[1].name}"):
            follow(bad, client, poll_s=0.5)
        assert cluster.submissions() == 2
    finally:
        slurm_lab.down(cluster.directory)


def test_nodes_called_by_their_addresses(tmp_path, monkeypatch):
    cluster = start_lab(names="address")
    try:
        monkeypatch.setenv("BHIVE_SLURM_LAB", str(cluster.directory))
        profile = profiles.read_profile("local-lab", nodes=2)
        assert cluster.run("srun", "--nodes=2", "--ntasks=4", "hostname").stdout.count("\n") == 4
        submit_and_follow(profile, Slurm.of(profile), tmp_path, "true")
    finally:
        slurm_lab.down(cluster.directory)


def test_gpus_are_asked_for_in_both_styles_missing_ones_named(cluster, client, tmp_path):
    """The lab's GPUs are device files, which no driver knows: the check of the nodes finds none of them."""
    for style in ("gres", "gpus-per-node"):
        setup = ["echo $CUDA_VISIBLE_DEVICES", *(["exit 3"] if preflight.count_gpus({}) else [])]
        asked = {"nodes": 2, "gpus_per_node": 2, "gpu_style": style}
        profile = profiles.read_profile("local-lab", setup=setup, python=sys.executable, **asked)
        environment = {"PYTHONPATH": str(REPOSITORY)}
        ranks = job.make_spec(
            profile, name="t", kind="ranks", command=["x"], directory=tmp_path / style, environment=environment
        )
        record = dispatch.submit_or_attach(profile, ranks, client)
        with pytest.raises(JobFailedError) as caught:
            follow(record, client, poll_s=0.5)
        assert "0,1" in record.log.read_text()
        if not preflight.count_gpus({}):
            problems = "; ".join(f"node {node} shows 0 GPUs, but 2 were asked for" for node in ("n1", "n2"))
            assert f"exit code 69 ({problems})" in str(caught.value)


STAND_IN = """#!/bin/bash
# as apptainer is called: options, image, command; with a PATH of the image's own
shift
while [[ "$1" == -* ]]; do shift; done
echo "${SLURM_STEP_ID:-batch} $(basename "$1") $([[ "$PATH" == /image* ]] && echo inside || echo outside)" >> "$0.log"
shift
PATH="/image:$PATH" exec "$@"
"""


def test_what_runs_in_a_container_is_started_in_it_by_every_node(cluster, client, tmp_path):
    """A stand-in for Apptainer: batch step, check of both nodes and both ranks start it, from outside the image."""
    runtime = tmp_path / "stand in"
    runtime.write_text(STAND_IN)
    runtime.chmod(0o755)
    box = {"image": f"{tmp_path}/a b.sif", "runtime": str(runtime)}
    profile = profiles.read_profile("local-lab", container=box, python=sys.executable)
    settings = {"name": "t", "kind": "ranks", "nodes": 2, "ranks_per_node": 1, "directory": tmp_path / "out"}
    environment = {"PYTHONPATH": str(REPOSITORY)}
    ranks = job.make_spec(profile, command=["bash", "-c", "echo $PATH"], environment=environment, **settings)
    follow(dispatch.submit_or_attach(profile, ranks, client), client, poll_s=0.5, display=Lines())
    started = sorted(Path(f"{runtime}.log").read_text().splitlines())
    assert started == [f"{step} a b.sif outside" for step in ("0", "0", "1", "1", "batch")]
    logs = sorted((tmp_path / "out/logs").glob("rank_*.log"))
    assert [log.read_text().startswith("/image:") for log in logs] == [True, True]


def test_ranks_ended_by_their_time_limit_are_put_back(cluster, profile, client, tmp_path):
    """A limit that ends them before they have saved; the lab looks at limits twice a minute."""
    # ignored, not trapped: a warning that comes a look earlier than the end reaches every process of the step
    script = f"trap '' USR2; mark={tmp_path}/began.$SLURM_PROCID; [ -e $mark ] && exit; touch $mark; sleep 200"
    settings = {"name": "t", "kind": "ranks", "nodes": 2, "ranks_per_node": 1, "directory": tmp_path / "out"}
    environment = {"PYTHONPATH": str(REPOSITORY)}
    ranks = job.make_spec(profile, command=["bash", "-c", script], environment=environment, **settings)
    record = dispatch.submit_or_attach(profile, ranks, client)
    wait_for(lambda: len(list(tmp_path.glob("began.*"))) == 2)
    assert cluster.run("scontrol", "update", f"jobid={record.job_id}", "endtime=now+1").returncode == 0
    ended = follow(record, client, poll_s=0.5, display=Lines())
    assert (ended.state, ended.restarts, ended.timeout_step) == (JobState.COMPLETED, 1, 0)


def test_the_record_tells_the_whole_story(cluster, profile, client, tmp_path):
    for command in ("false", "true"):
        record = dispatch.submit_or_attach(profile, spec(profile, tmp_path, command), client)
        try:
            follow(record, client, poll_s=0.5)
        except JobFailedError:
            assert command == "false"
    content = json.loads((tmp_path / "slurm" / "job.json").read_text())
    assert [attempt["state"] for attempt in content["attempts"]] == ["FAILED"]
    assert (content["state"], content["exit_code"]) == ("COMPLETED", 0)


ORDINARY = textwrap.dedent("""
    import os, sys
    from pathlib import Path
    from bhive_mltf.slurm import dispatch, job, profiles
    from bhive_mltf.testing import slurm_lab as lab
    from bhive_mltf.slurm.client import Slurm
    from bhive_mltf.slurm.follow import follow

    folder = Path(sys.argv[1])
    cluster = lab.up(lab.Settings(directory=Path(os.environ["BHIVE_SLURM_LAB"])))
    try:
        profile = profiles.read_profile("local-lab", nodes=2, python=sys.executable)
        spec = job.make_spec(
            profile, name="t", kind="ranks", command=["id", "-un"], directory=folder,
            environment={"PYTHONPATH": os.environ["PYTHONPATH"]},
        )
        follow(dispatch.submit_or_attach(profile, spec), Slurm.of(profile), poll_s=0.5)
    finally:
        lab.down(cluster.directory)
    print(*(path.read_text().strip() for path in sorted((folder / "logs").glob("rank_*.log"))))
""")


@pytest.mark.skipif(os.geteuid() != 0, reason="the other tests are run by an ordinary user then")
def test_an_ordinary_user_has_a_lab(lab_of_the_session):
    python = f"/usr/bin/python{sys.version_info.major}.{sys.version_info.minor}"
    packages = [path for path in sys.path if path.endswith("site-packages")]
    become = ["setpriv", "--reuid=nobody", "--regid=nogroup", "--clear-groups"]
    environment = {"PATH": os.environ["PATH"], "PYTHONPATH": ":".join([str(REPOSITORY), *packages])}
    if subprocess.run([*become, python, "-c", "import bhive_mltf.slurm.job"], env=environment, check=False).returncode:
        pytest.skip("an ordinary user can read neither this environment nor a system's Python that fits it")
    with tempfile.TemporaryDirectory(prefix="bhive-", dir="/tmp") as folder:
        # munge wants its socket where all can reach it
        Path(folder).chmod(0o755)
        os.chown(folder, pwd.getpwnam("nobody").pw_uid, -1)
        environment["BHIVE_SLURM_LAB"] = f"{folder}/lab"
        done = subprocess.run(
            [*become, python, "-c", ORDINARY, f"{folder}/out"],
            env=environment,
            capture_output=True,
            text=True,
            check=False,
        )
    assert done.stdout.split() == ["nobody"] * 4, done.stderr
