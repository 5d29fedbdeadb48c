"""ConvertNtuples as jobs of a scheduler of small scripts, whose jobs the test runs."""

import os
import time

import pytest
import yaml

from bhive_mltf.slurm.job import SPEC_NAME, JobSpec
from bhive_mltf.slurm.record import find_all
from bhive_mltf.testing import jets
from tests.helpers.commands import Sandbox
from tests.helpers.fake_scheduler import FakeScheduler

N_FILES = 4
PROFILE = {"description": "scripts", "nodes": 1, "cpus_per_rank": 1, "memory_per_cpu_gb": 1, "hours": 1}


@pytest.fixture(scope="module")
def filelist(tmp_path_factory):
    folder = tmp_path_factory.mktemp("ntuples")
    paths = [jets.write_btag(folder / f"{p}_{n}.root", 40, n, process=p) for p in ("TT", "QCD") for n in (1, 2)]
    (folder / "train.txt").write_text("".join(f"{path}\n" for path in paths))
    return folder / "train.txt"


class Site:
    """A shell beside a scheduler, and one conversion."""

    def __init__(self, folder, law_home, filelist):
        self.sandbox = Sandbox(folder, law_home)
        self.scheduler = FakeScheduler(folder / "programs").install()
        self.sandbox.environment["PATH"] = f"{self.scheduler.folder}{os.pathsep}{os.environ['PATH']}"
        self.profile = folder / "scripts.yml"
        self.profile.write_text(yaml.safe_dump({**PROFILE, "accounting": False, "poll_seconds": 0.5}))
        self.options = ["--config", "offline_run3", "--dataset-version", "v1", "--filelist", filelist]
        self.directory = self.sandbox.data_path / "ConvertNtuples/offline_run3/v1"

    def start(self, *options):
        return self.sandbox.start("ConvertNtuples", *self.options, "--slurm", self.profile, *options)

    def work(self, command, fails=()):
        """Run the jobs, those with a number in `fails` only as failures, until the command ends; its output."""
        deadline, number = time.monotonic() + 300, 0
        while command.poll() is None:
            assert time.monotonic() < deadline, command.kill()
            for job_id, job in self.scheduler.jobs.items():
                if job["state"] == "PENDING":
                    number += 1
                    if number in fails:
                        self.scheduler.change(job_id, state="FAILED", status=256)
                        continue
                    spec = self.spec(job["name"])
                    done = self.sandbox.law(*spec.command[3:], BHIVE_MLTF_INSIDE_JOB=job_id)
                    assert done.returncode == 0, done.stdout
                    self.scheduler.change(job_id, state="COMPLETED")
            time.sleep(0.1)
        return command.communicate()[0]

    def spec(self, name):
        (record,) = [one for one in find_all(self.directory / "jobs") if one.job_name == name]
        return JobSpec.read(record.folder / SPEC_NAME)

    def staged(self):
        return {path.name: path.read_bytes() for path in self.directory.iterdir() if path.suffix not in (".json", "")}

    def wait_for_jobs(self, number):
        deadline = time.monotonic() + 120
        while len(self.scheduler.jobs) < number:
            assert time.monotonic() < deadline
            time.sleep(0.1)


@pytest.fixture
def site(tmp_path, law_home, filelist):
    return Site(tmp_path, law_home, filelist)


@pytest.mark.long
def test_jobs_of_two_branches_give_what_this_machine_gives(site, tmp_path_factory, law_home):
    command = site.start("--tasks-per-job", 2)
    output = site.work(command)
    assert command.returncode == 0, output
    assert len(site.scheduler.jobs) == N_FILES // 2
    assert len(site.staged()) == N_FILES
    here = Sandbox(tmp_path_factory.mktemp("here"), law_home)
    here.run("ConvertNtuples", *site.options)
    assert {path.name: path.read_bytes() for path in here.data_path.rglob("*.arrow")} == site.staged()
    again = site.start("--tasks-per-job", 2)
    assert "1 complete ones" in site.work(again)
    assert len(site.scheduler.jobs) == N_FILES // 2


@pytest.mark.long
def test_a_failed_job_is_repeated_alone(site):
    command = site.start("--retries", 1)
    output = site.work(command, fails={2})
    assert command.returncode == 0, output
    assert len(site.scheduler.jobs) == N_FILES + 1
    assert len(site.staged()) == N_FILES


@pytest.mark.long
def test_retries_come_to_an_end(site):
    command = site.start("--retries", 1, "--tasks-per-job", N_FILES)
    output = site.work(command, fails={1, 2})
    assert command.returncode != 0
    assert "it failed with exit code 1" in output
    assert len(site.scheduler.jobs) == 2


@pytest.mark.long
def test_what_a_person_cancels_is_not_repeated(site):
    command = site.start("--tasks-per-job", N_FILES)
    site.wait_for_jobs(1)
    (job_id,) = site.scheduler.jobs
    site.scheduler.change(job_id, state="CANCELLED")
    output = site.work(command)
    assert command.returncode != 0
    assert "it was cancelled" in output
    assert len(site.scheduler.jobs) == 1


def test_jobs_are_told_no_default_and_cancelling_ends_all(site):
    command = site.start("--seed", 7)
    site.wait_for_jobs(N_FILES)
    told = list(site.spec(next(iter(site.scheduler.jobs.values()))["name"]).command[5:])
    assert told[-4:-1] == ["--workflow", "local", "--branches"]
    assert sorted(told[:-4]) == sorted(map(str, [*site.options, "--seed", 7]))
    cancelling = site.start("--seed", 7, "--cancel-jobs", True)
    output = cancelling.communicate(timeout=200)[0]
    assert cancelling.returncode == 0, output
    assert output.count("CANCELLED") == N_FILES, output
    assert command.communicate(timeout=200)[0]
    assert command.returncode != 0
    assert {job["state"] for job in site.scheduler.jobs.values()} == {"CANCELLED"}
    assert len(site.scheduler.jobs) == N_FILES
