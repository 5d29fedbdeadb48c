"""Hostile projects in real jobs, from the upload to the end; and what their logs may do to those who read them."""

import contextlib
import socket
import subprocess
import sys
import time

import psutil
import pytest

from bhive_mltf_client.main import without_control
from tests.gateway import hostile
from tests.helpers.waiting import wait_for

pytestmark = [pytest.mark.gateway, pytest.mark.slurm]


@pytest.fixture(scope="module")
def mallory(stack):
    return stack.person("mallory")


def project(folder, command):
    """The folder of a project with this command."""
    folder.mkdir(exist_ok=True)
    (folder / "MLproject").write_text(f"entry_points: {{main: {{command: '{command}'}}}}")
    return folder


def test_hostile_project_gets_nothing_in_a_real_job(stack, mallory, tmp_path):
    spool, name = stack.folder / "spool", f"mltf-hostile-{stack.ports['api']}"
    other = spool / "jobs" / "jother"
    for folder in ("work", "private", "slurm"):
        (other / folder).mkdir(parents=True, exist_ok=True)
    (other / "work" / "secret").write_text(hostile.CANARY)
    (other / "private" / "token").write_text(hostile.CANARY)
    secrets = [*(stack.folder / "keys").glob("*.pem"), *stack.folder.glob("*.db"), stack.config]
    process = subprocess.Popen([sys.executable, "-c", "input()", name], stdin=subprocess.PIPE)
    with socket.socket(socket.AF_UNIX) as abstract:
        abstract.bind(f"\0{name}")
        abstract.listen()
        known = hostile.facts(
            spool=spool,
            job=other,
            other=other,
            secrets=[*secrets, *stack.lab.settings.folder("etc").iterdir()],
            munge=str(stack.lab.settings.folder("run") / "munge.socket"),
            port=stack.ports["api"],
            pid=process.pid,
            name=name,
        )
        place = project(tmp_path / "hostile", "python main.py")
        hostile.write(place, known)
        job = mallory.submit(place)
        mallory.wait(job, "succeeded", seconds=240)
    process.communicate(b"\n")
    hostile.check(mallory.run("logs", "--raw", job)[0])


STUBBORN = """
import os, signal, subprocess, sys, time
for number in (signal.SIGTERM, signal.SIGHUP, signal.SIGINT, signal.SIGUSR1, signal.SIGUSR2):
    signal.signal(number, signal.SIG_IGN)
for _ in range(20):
    if os.fork() == 0:
        os.setsid()
        if os.fork():
            os._exit(0)
        os.execvp("sleep", ["sleep", "900", sys.argv[1]]) if os.getpid() % 2 else time.sleep(900)
print("begun", flush=True)
time.sleep(900)
"""


def alive(*words):
    """Processes of this machine with one of the words in their command line."""
    found = []
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error):
            if any(word in " ".join(process.cmdline()) for word in words):
                found.append(process.cmdline())
    return found


def test_nothing_of_a_job_is_alive_ten_seconds_after_cancel(mallory, tmp_path):
    mark = f"0.{time.time_ns()}"
    place = project(tmp_path / "stubborn", f"python main.py {mark}")
    (place / "main.py").write_text(STUBBORN)
    job = mallory.submit(place)
    log = mallory.folder_of(job) / "logs" / "rank_0.log"
    mallory.wait_for(job, lambda _: log.exists() and "begun" in log.read_text(), 60, "its first line")
    wait_for(lambda: len(alive(mark)) >= 20, what="its processes")
    mallory.run("cancel", job)
    begun = time.monotonic()
    # launcher, srun and supervisor have the job's folder in their command lines
    mallory.wait_for(job, lambda _: not alive(mark, job), 30, "the end of its processes")
    assert time.monotonic() - begun < 10
    mallory.wait(job, "cancelled")


PARTS = {
    "colours": [b"a\x1b[31mb\x1b[0m"],
    "title of the window": [b"a\x1b]0;evil\x07b"],
    "keys that are typed": [b"a\x1bP$q\x1b\\b"],
    "control characters of eight bits": ["a\x9b31mb".encode()],
    "in two parts": ["a\x9b".encode()[:2], "a\x9b31mb".encode()[2:]],
    "bell and backspace": [b"a\x07\x08b"],
    "turned text": ["a\u202eb".encode()],
    "a sequence in two parts": [b"a\x1b", b"[31mb"],
    "no text at all": [bytes(range(256)), b"\xe2\x82"],
}


@pytest.mark.parametrize("name", PARTS)
def test_log_does_not_steer_a_terminal(name):
    shown = b"".join(without_control(PARTS[name])).decode()
    assert not [char for char in shown if char < " " and char not in "\t\n\r"]
    assert not [char for char in shown if "\x7f" <= char <= "\x9f" or char in "\u202e"]
    assert name == "no text at all" or (shown.startswith("a") and shown.endswith("b"))


def test_one_line_of_many_megabytes_is_read_in_parts(mallory, tmp_path):
    place = project(tmp_path / "long", "python main.py")
    (place / "main.py").write_text("import sys\nfor _ in range(12):\n    sys.stdout.write('x' * 10**6)\n")
    job = mallory.submit(place)
    mallory.wait(job, "succeeded")
    answer = mallory.ask("GET", f"/v1/submissions/{job}/log")
    assert len(answer.content) == 2**20
    assert mallory.run("logs", job)[0] == "x" * 12 * 10**6
