"""Starting and stopping the daemons of a lab, each by its process id."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import psutil

from bhive_mltf.errors import SlurmError
from bhive_mltf.slurm import local_cluster
from bhive_mltf.testing.slurm_lab import packages, texts
from bhive_mltf.testing.slurm_lab.settings import Settings

START_S = 90.0
STOP_S = 10.0


def run(lab: Settings, command: Sequence[str], *, host: str = "") -> None:
    """Run a program that puts itself into the background; `host` is the name it sees as its own.

    Raises
    ------
    SlurmError : it fails; names the program, its last words and the folder of its log.
    """
    path = packages.program(command[0])
    full = [path or command[0], *command[1:]]
    if host and lab.names == "namespace":
        full = [*namespace(lab, host), *full]
    environment = {**os.environ, "SLURM_CONF": str(lab.slurm_conf)}
    log = lab.folder("log") / f"{command[0]}.start"
    with log.open("w", encoding="utf-8") as output:
        # a daemon keeps what it inherits: no pipe, or the caller would wait for it
        done = subprocess.run(
            full, stdin=subprocess.DEVNULL, stdout=output, stderr=output, env=environment, check=False, timeout=240
        )
    if done.returncode != 0:
        words = log.read_text(encoding="utf-8", errors="replace").strip().splitlines()
        raise SlurmError(
            f"{command[0]} did not start (exit code {done.returncode}: {words[-1] if words else 'no message'}); "
            f"its log is in {lab.folder('log')}"
        )


def namespace(lab: Settings, host: str) -> list[str]:
    """Command that runs what follows with a host name and an `/etc/hosts` of its own."""
    user = [] if lab.is_root else ["--user", "--map-current-user", "--keep-caps"]
    script = 'hostname "$1" && mount --bind "$2" /etc/hosts && shift 2 && exec "$@"'
    hosts = str(lab.folder("etc") / "hosts")
    return ["unshare", *user, "--mount", "--uts", "bash", "-c", script, "bash", host, hosts]


def namespaces_work(lab: Settings) -> bool:
    """Whether this user may have host names of its own."""
    try:
        done = subprocess.run([*namespace(lab, "n1"), "true"], capture_output=True, check=False, timeout=10)
    except (OSError, subprocess.TimeoutExpired):
        return False
    return done.returncode == 0


def start_munge(lab: Settings) -> None:
    """The authentication daemon."""
    etc, log, folder = lab.folder("etc"), lab.folder("log"), lab.folder("run")
    command = ["munged", f"--socket={folder}/munge.socket", f"--key-file={etc}/munge.key", "--origin=127.0.0.1"]
    command += [f"--log-file={log}/munged.log", f"--pid-file={folder}/munged.pid", f"--seed-file={folder}/munged.seed"]
    run(lab, command)


def start_accounting(lab: Settings) -> None:
    """MariaDB with an empty database, and slurmdbd on it."""
    data, folder = lab.folder("database"), lab.folder("run")
    run(
        lab,
        [
            *("mariadb-install-db", "--no-defaults", f"--datadir={data}", f"--user={lab.user}"),
            *("--auth-root-authentication-method=normal", "--skip-test-db", "--skip-name-resolve"),
        ],
    )
    _start_database(lab, data, folder)
    user = "'slurm'@'127.0.0.1'"
    statement = (
        f"CREATE DATABASE {texts.DATABASE}; CREATE USER {user} IDENTIFIED BY 'slurm'; "
        f"GRANT ALL ON {texts.DATABASE}.* TO {user};"
    )
    client = ["mariadb", "--no-defaults", f"--socket={folder}/db.socket", "--user=root"]
    wait(lambda: _succeeds([*client, "-e", "SELECT 1"]), "MariaDB", lab)
    run(lab, [*client, "-e", statement])
    run(lab, ["slurmdbd"])
    # it has a process id seconds before it listens
    wait(lambda: _listens(lab.port + 1), "slurmdbd", lab)


def _start_database(lab: Settings, data: Path, folder: Path) -> None:
    command = [
        *(packages.program("mariadbd") or "mariadbd", "--no-defaults", f"--user={lab.user}", f"--datadir={data}"),
        *(f"--socket={folder}/db.socket", "--bind-address=127.0.0.1", f"--port={lab.port + 2}"),
        *("--innodb-buffer-pool-size=64M", "--innodb-log-file-size=16M", "--innodb-lock-wait-timeout=900"),
        *("--innodb-flush-log-at-trx-commit=0", "--performance-schema=OFF", f"--pid-file={folder}/mariadbd.pid"),
        "--skip-name-resolve",
    ]
    # it does not put itself into the background
    script = 'exec > "$1" 2>&1 < /dev/null; shift; "$@" &'
    log = str(lab.folder("log") / "mariadbd.log")
    subprocess.run(["bash", "-c", script, "bash", log, *command], check=True, start_new_session=True, timeout=60)


def _listens(port: int) -> bool:
    with socket.socket() as probe:
        probe.settimeout(1.0)
        return probe.connect_ex(("127.0.0.1", port)) == 0


def _succeeds(command: Sequence[str]) -> bool:
    return subprocess.run(command, capture_output=True, check=False, timeout=30).returncode == 0


def pid_of(lab: Settings, name: str) -> int | None:
    """Process id of a running daemon of this lab; None when it does not run."""
    return local_cluster.pid_of(lab.directory, name)


def stop(lab: Settings, name: str, number: signal.Signals = signal.SIGTERM) -> None:
    """End a daemon and wait for it; one that does not run is none's problem."""
    pid = pid_of(lab, name)
    if pid is None:
        return
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, number)
    try:
        wait(lambda: pid_of(lab, name) is None, name, lab, STOP_S)
    except SlurmError:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)


def kill_jobs(lab: Settings, node: str = "") -> None:
    """End what jobs of this lab run, or have left behind: processes with its configuration and a job id.

    node : only those of this node, and before them the daemons that would tell the controller how they ended.
    """
    found: list[psutil.Process] = []
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error):
            environment = process.environ()
            is_there = node in ("", environment.get("SLURMD_NODENAME"))
            if environment.get("SLURM_CONF") == str(lab.slurm_conf) and "SLURM_JOB_ID" in environment and is_there:
                found.append(process)
    tellers: set[psutil.Process] = set()
    for process in found if node else ():
        with contextlib.suppress(psutil.Error):
            tellers |= {parent for parent in process.parents() if parent.name() == "slurmstepd"}
    for process in (*tellers, *found):
        with contextlib.suppress(psutil.Error):
            process.kill()


def wait(holds: Callable[[], bool], what: str, lab: Settings, seconds: float = START_S) -> None:
    """Return when it holds; SlurmError with the place of the logs when it does not in time."""
    deadline = time.monotonic() + seconds
    while not holds():
        if time.monotonic() > deadline:
            raise SlurmError(f"{what} was not ready after {seconds:g} s; the logs are in {lab.folder('log')}")
        time.sleep(0.02)
