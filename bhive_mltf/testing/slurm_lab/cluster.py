"""A lab as a whole: up, down, where it is."""

from __future__ import annotations

import contextlib
import fcntl
import os
import secrets
import shutil
import signal
import stat
import subprocess
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

from bhive_mltf.errors import SlurmError
from bhive_mltf.slurm.local_cluster import default_directory
from bhive_mltf.testing.slurm_lab import daemons, packages, texts
from bhive_mltf.testing.slurm_lab.settings import LONGEST_DIRECTORY, STATE_NAME, Settings

_FOLDERS = ("etc", "run", "log", "state", "dev", "database")


@dataclass(frozen=True)
class Lab:
    """A lab that was started."""

    settings: Settings

    @property
    def directory(self) -> Path:
        """Where all its files are."""
        return self.settings.directory

    @property
    def environment(self) -> dict[str, str]:
        """Variables that let a shell or a process use it."""
        return {"SLURM_CONF": str(self.settings.slurm_conf)}

    @property
    def is_running(self) -> bool:
        """Whether its controller runs."""
        return daemons.pid_of(self.settings, "slurmctld") is not None

    def kill_controller(self, after_saving: str = "") -> None:
        """SIGKILL to the controller, as a crash; what it did not save, every few seconds, is lost.

        after_saving : id of a job that it shall have saved as it is now.
        """
        if after_saving:
            saved = self.settings.folder("state") / "job_state"
            # what is written into the job now is saved with all that happened to it before
            mark = f"saved-{secrets.token_hex(8)}"
            self.run("scontrol", "update", f"jobid={after_saving}", f"admincomment={mark}")
            daemons.wait(
                lambda: saved.exists() and mark.encode() in saved.read_bytes(), "the saved state", self.settings, 60
            )
        daemons.stop(self.settings, "slurmctld", signal.SIGKILL)

    def start_controller(self) -> None:
        """Start the controller; it goes on with the jobs that an earlier one knew."""
        daemons.run(self.settings, ["slurmctld", "-f", str(self.settings.slurm_conf)], host="localhost")
        daemons.wait(lambda: self.run("scontrol", "ping").returncode == 0, "slurmctld", self.settings)

    def lose_node(self, number: int) -> None:
        """SIGKILL to the daemon of a node and to all that its jobs run there, as a power cut."""
        name = self.settings.nodes[number][0]
        daemons.stop(self.settings, f"slurmd.{name}", signal.SIGKILL)
        daemons.kill_jobs(self.settings, name)

    def start_node(self, number: int) -> None:
        """Start the daemon of a node."""
        name = self.settings.nodes[number][0]
        daemons.run(self.settings, ["slurmd", "-N", name, "-f", str(self.settings.slurm_conf)], host=name)

    def restore(self) -> None:
        """Cancel all jobs, start what does not run, and wait until both nodes are idle."""
        if not self.is_running:
            self.start_controller()
        for number, (name, _) in enumerate(self.settings.nodes):
            if daemons.pid_of(self.settings, f"slurmd.{name}") is None:
                self.start_node(number)
        _cancel_all(self)
        self.run("scontrol", "update", f"nodename={','.join(name for name, _ in self.settings.nodes)}", "state=resume")
        daemons.wait(self.are_nodes_ready, "the nodes", self.settings)

    def submissions(self) -> int:
        """How many batch jobs the controller has been asked for since it was first started."""
        log = self.settings.folder("log") / "slurmctld.log"
        return log.read_text(encoding="utf-8", errors="replace").count("_slurm_rpc_submit_batch_job: JobId=")

    def run(self, *command: str) -> subprocess.CompletedProcess[str]:
        """Run one of SLURM's client programs on it."""
        environment = {**os.environ, **self.environment}
        return subprocess.run(command, capture_output=True, text=True, env=environment, check=False, timeout=60)

    def are_nodes_ready(self) -> bool:
        """Whether all nodes wait for jobs."""
        states = self.run("sinfo", "--noheader", "--Node", "--partition=main", "--format=%T").stdout.split()
        return len(states) == len(self.settings.nodes) and set(states) == {"idle"}


def up(settings: Settings | None = None) -> Lab:
    """Start a lab with empty queues; one that runs in this directory is used as it is.

    Raises
    ------
    SlurmError : packages are missing, ports are in use, or a daemon does not start; what was started is stopped again.
    """
    settings = settings or Settings()
    settings = replace(settings, directory=settings.directory.absolute())
    found = find(settings.directory)
    if found is not None:
        return found
    packages.require(settings.accounting)
    with _one_at_a_time():
        settings = _prepare(settings)
        lab = Lab(settings)
        try:
            _start(lab)
        except BaseException:
            down(settings.directory, keep=True)
            raise
    return lab


@contextlib.contextmanager
def _one_at_a_time() -> Iterator[None]:
    """Ports that look free stay so until the daemons have them."""
    path = Path(tempfile.gettempdir()) / f"bhive-slurm-lab-{os.getuid()}.lock"
    with path.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def find(directory: Path | None = None) -> Lab | None:
    """The lab that runs in this directory (default: `$BHIVE_SLURM_LAB`, else this user's); None when none does."""
    settings = Settings.read(directory or default_directory())
    lab = Lab(settings) if settings is not None else None
    return lab if lab is not None and lab.is_running else None


def down(directory: Path | None = None, *, keep: bool = False) -> bool:
    """Cancel all jobs, stop all daemons and remove the directory; False when there was no lab.

    keep : leave the directory with the logs.
    """
    settings = Settings.read(directory or default_directory())
    if settings is None:
        return False
    lab = Lab(settings)
    if lab.is_running:
        _cancel_all(lab)
    for name in (*(f"slurmd.{node}" for node, _ in settings.nodes), "slurmctld", "slurmdbd", "mariadbd", "munged"):
        daemons.stop(settings, name)
    daemons.kill_jobs(settings)
    if keep:
        (settings.directory / STATE_NAME).unlink(missing_ok=True)
    else:
        shutil.rmtree(settings.directory, ignore_errors=True)
    return True


def _cancel_all(lab: Lab) -> None:
    with contextlib.suppress(subprocess.TimeoutExpired, SlurmError):
        lab.run("scancel", f"--user={lab.settings.user}")
        daemons.wait(lambda: not lab.run("squeue", "--noheader").stdout.strip(), "the end of jobs", lab.settings, 10)


def _prepare(settings: Settings) -> Settings:
    """Make directory, key and configuration; the settings with ports and kind of names chosen."""
    directory = settings.directory
    if len(os.fsencode(directory)) > LONGEST_DIRECTORY:
        raise SlurmError(f"the path {directory} is longer than {LONGEST_DIRECTORY} bytes: give a shorter --directory")
    _clear(directory)
    for name in _FOLDERS:
        settings.folder(name).mkdir(parents=True)
    settings = settings.with_free_port()
    # the file must be there to see whether it can be put over /etc/hosts
    _write(settings, "hosts", texts.hosts(replace(settings, names="namespace")))
    if not settings.names:
        settings = replace(settings, names="namespace" if daemons.namespaces_work(settings) else "address")
    _write(settings, "munge.key", secrets.token_bytes(1024), mode=0o600)
    _write(settings, "slurm.conf", texts.slurm_conf(settings))
    _write(settings, "gres.conf", texts.gres_conf(settings))
    if settings.accounting:
        _write(settings, "slurmdbd.conf", texts.slurmdbd_conf(settings), mode=0o600)
    _make_devices(settings)
    settings.write()
    return settings


def _clear(directory: Path) -> None:
    """Remove what an earlier lab left; SlurmError for a directory that is no lab of this user."""
    if not directory.exists():
        directory.mkdir(parents=True, mode=0o755)
        return
    ours = directory.stat().st_uid == os.getuid()
    if not ours or (any(directory.iterdir()) and not (directory / "etc" / "slurm.conf").exists()):
        raise SlurmError(f"{directory} is not a lab of this user: remove it, or give another --directory")
    if Settings.read(directory) is not None:
        down(directory)
    shutil.rmtree(directory, ignore_errors=True)
    directory.mkdir(parents=True, mode=0o755)


def _write(settings: Settings, name: str, content: str | bytes, mode: int = 0o644) -> None:
    path = settings.folder("etc") / name
    path.touch(mode=mode)
    path.write_bytes(content.encode() if isinstance(content, str) else content)


def _make_devices(settings: Settings) -> None:
    """Device files that stand for GPUs: copies of /dev/null, since SLURM wants device files."""
    if settings.is_root:
        for number in range(settings.gpus):
            os.mknod(settings.folder("dev") / f"gpu{number}", stat.S_IFCHR | 0o666, os.makedev(1, 3))


def _start(lab: Lab) -> None:
    settings = lab.settings
    daemons.start_munge(settings)
    daemons.wait((settings.folder("run") / "munge.socket").exists, "munged", settings)
    if settings.accounting:
        daemons.start_accounting(settings)
    lab.start_controller()
    for number in range(len(settings.nodes)):
        lab.start_node(number)
    daemons.wait(lab.are_nodes_ready, "the nodes", settings)
