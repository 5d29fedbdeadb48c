"""A real cluster for the tests marked `slurm`, and a scheduler of small scripts for the others."""

import os
import shutil
import subprocess
import tempfile
from pathlib import Path

import pytest

from bhive_mltf.slurm import profiles
from bhive_mltf.slurm.client import Slurm
from bhive_mltf.slurm.interrupts import Interrupts
from bhive_mltf.testing import slurm_lab
from bhive_mltf.testing.slurm_lab import packages
from tests.helpers.commands import Sandbox
from tests.helpers.fake_scheduler import FakeScheduler

REQUIRED = "BHIVE_REQUIRE_SLURM"  # set where a missing cluster is a failure, such as in continuous integration


def require_packages(accounting=False):
    """Skip, or fail where a cluster is required, without SLURM's packages."""
    if missing := packages.missing(accounting):
        sentence = f"needs the Debian packages {' '.join(missing)}; 'make slurm-up' installs them"
        (pytest.fail if os.environ.get(REQUIRED) else pytest.skip)(sentence)


def start_lab(**settings):
    """A cluster in a short path of its own; the caller stops it."""
    require_packages(settings.get("accounting", False))
    directory = Path(tempfile.mkdtemp(prefix="bhive-lab-", dir="/tmp"))
    directory.chmod(0o755)
    try:
        return slurm_lab.up(slurm_lab.Settings(directory=directory, **settings))
    except BaseException:
        shutil.rmtree(directory, ignore_errors=True)
        raise


def programs(folder, without=(), **scripts):
    """A PATH of one folder with all programs of this one except some, and with scripts in place of others."""
    folder.mkdir()
    for directory in reversed(os.environ["PATH"].split(os.pathsep)):
        for path in Path(directory).iterdir() if Path(directory).is_dir() else ():
            link = folder / path.name
            link.unlink(missing_ok=True)
            link.symlink_to(path)
    for name in (*without, *scripts):
        (folder / name).unlink(missing_ok=True)
    for name, text in scripts.items():
        (folder / name).write_text(f"#!/bin/bash\n{text}\n")
        (folder / name).chmod(0o755)
    return str(folder)


@pytest.fixture(scope="session")
def disk_of_the_session():
    """A disk of 400 MB, mounted before the nodes start, which see what was there then; None where none can be."""
    folder = Path(tempfile.mkdtemp(prefix="bhive-disk-", dir="/tmp"))
    mount = ["mount", "-t", "tmpfs", "-o", "size=400m", "tmpfs", str(folder)]
    mounted = os.geteuid() == 0 and subprocess.run(mount, capture_output=True, check=False).returncode == 0
    yield folder if mounted else None
    if mounted:
        subprocess.run(["umount", str(folder)], check=True)
    folder.rmdir()


@pytest.fixture
def small_disk(disk_of_the_session):
    if disk_of_the_session is None:
        pytest.skip("a small disk of its own needs root, and the right to mount")
    return disk_of_the_session


@pytest.fixture(scope="session")
def lab_of_the_session(disk_of_the_session):
    cluster = start_lab()
    yield cluster
    slurm_lab.down(cluster.directory)


@pytest.fixture
def cluster(lab_of_the_session, monkeypatch):
    """Two empty nodes without accounting; the profile `local-lab` finds them."""
    cluster = lab_of_the_session
    monkeypatch.setenv("BHIVE_SLURM_LAB", str(cluster.directory))
    monkeypatch.delenv("SLURM_CONF", raising=False)
    cluster.restore()
    yield cluster
    cluster.restore()


@pytest.fixture
def profile(cluster):
    return profiles.read_profile("local-lab")


@pytest.fixture
def client(profile):
    return Slurm.of(profile)


@pytest.fixture
def fake(tmp_path, monkeypatch):
    """A scheduler of small scripts, first on PATH."""
    scheduler = FakeScheduler(tmp_path / "bin").install()
    monkeypatch.setenv("PATH", f"{scheduler.folder}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.delenv("SLURM_CONF", raising=False)
    return scheduler


class FakeClock(Interrupts):
    """Time that passes only by waiting; `then` is done at the end of each wait."""

    def __init__(self):
        super().__init__()
        self.time, self.count, self.twice, self.answer, self.waits = 1000.0, 0, False, False, 0
        self.then = lambda: None

    def now(self):
        return self.time

    def wait(self, seconds):
        self.time += seconds
        self.waits += 1
        assert self.waits < 2000, "it waits for ever"
        self.then()

    def came_twice(self):
        return self.twice

    def confirms(self, question):
        return self.answer


@pytest.fixture
def clock():
    return FakeClock()


@pytest.fixture(scope="session")
def law_home(tmp_path_factory):
    """The index of the tasks."""
    home = tmp_path_factory.mktemp("law")
    assert Sandbox(tmp_path_factory.mktemp("index"), home).law("index").returncode == 0
    return home


@pytest.fixture(scope="session")
def shell(tmp_path_factory, lab_of_the_session, law_home):
    """A shell with a training set; each test trains a version of its own on it."""
    from bhive_mltf.testing import jets
    from tests.helpers.slurm_trainings import Shell

    folder = tmp_path_factory.mktemp("slurm")
    paths = [jets.write_btag(folder / f"{p}.root", 300, seed, process=p) for seed, p in enumerate(("TT", "QCD"))]
    (folder / "train.txt").write_text("".join(f"{path}\n" for path in paths))
    made = Shell(folder, law_home, lab_of_the_session, folder / "train.txt")
    names = ("--config", "--dataset-version", "--filelist")
    made.run("DatasetConstructorTask", *(part for name in names for part in (name, made.options[name])))
    yield made
    made.close()


@pytest.fixture(scope="session")
def two_local(shell):
    """The training of two ranks without a batch system."""
    return shell.local("local2", 2)
