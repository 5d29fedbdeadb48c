"""ConvertNtuples on the real cluster: branches as jobs, with the outputs of the local workflow."""

import signal

import pytest

from bhive_mltf.slurm.record import find_all
from bhive_mltf.testing import jets
from tests.helpers.slurm_trainings import Shell, ended, wait_for

pytestmark = pytest.mark.slurm
N_FILES = 4


@pytest.fixture(scope="module")
def shell(tmp_path_factory, lab_of_the_session, law_home):
    folder = tmp_path_factory.mktemp("conversion")
    paths = [jets.write_btag(folder / f"{p}_{n}.root", 60, n, process=p) for p in ("TT", "QCD") for n in (1, 2)]
    (folder / "train.txt").write_text("".join(f"{path}\n" for path in paths))
    made = Shell(folder, law_home, lab_of_the_session, folder / "train.txt")
    yield made
    made.close()


@pytest.fixture(scope="module")
def local(shell):
    """What the local workflow makes."""
    Conversion(shell, "here").run()
    return Conversion(shell, "here").staged()


class Conversion:
    """One conversion, and its jobs."""

    def __init__(self, shell, version, *options):
        self.shell = shell
        self.directory = shell.data_path / "ConvertNtuples/offline_run3" / version
        # relative to where the command is typed, as people do
        given = ("--config", "offline_run3", "--dataset-version", version, "--filelist", "train.txt")
        self.arguments = ("run", "ConvertNtuples", *given, *options)

    def run(self):
        done = self.shell.law(*self.arguments)
        assert done.returncode == 0, done.stdout
        return done.stdout

    def start(self):
        return self.shell.start(*self.arguments[1:])

    def staged(self):
        return {path.name: path.read_bytes() for path in self.directory.iterdir() if path.suffix not in (".json", "")}

    def records(self):
        return {record.directory.name: record for record in find_all(self.directory / "jobs") if record.job_id}

    def running(self):
        """A job that runs, by the scheduler's word."""
        for record in self.records().values():
            state = self.shell.cluster.run("squeue", "-h", "-j", record.job_id, "-o", "%T").stdout.strip()
            if state == "RUNNING":
                return record
        return None


def test_branches_as_jobs_equal_the_local_workflow(cluster, shell, local):
    before = cluster.submissions()
    two_each = Conversion(shell, "jobs", "--workflow", "slurm", "--slurm", "local-lab", "--tasks-per-job", 2)
    output = two_each.run()
    assert two_each.staged() == local, output
    assert len(local) == N_FILES
    assert cluster.submissions() == before + N_FILES // 2
    assert two_each.run() is not None
    assert cluster.submissions() == before + N_FILES // 2, "what is there is not made again"


def test_a_killed_branch_is_repeated_alone_whoever_asks(cluster, shell, local):
    before = cluster.submissions()
    conversion = Conversion(shell, "killed", "--slurm", "local-lab")
    first = conversion.start()
    killed = wait_for(conversion.running, 60, "a job that runs")
    assert cluster.run("scancel", "--signal=KILL", "--full", killed.job_id).returncode == 0
    wait_for(lambda: len(conversion.records()) == N_FILES, 60, "all jobs")
    # the jobs go on without their command, and the same one attaches to them
    first.send_signal(signal.SIGKILL)
    first.communicate()
    output, code = ended(conversion.start(), 120)
    assert code == 0, output
    assert conversion.staged() == local
    assert cluster.submissions() == before + N_FILES + 1
    repeated = [name for name, record in conversion.records().items() if record.attempts]
    assert repeated == [killed.directory.name]


def test_a_cancelled_job_is_not_repeated_against_a_persons_will(cluster, shell):
    before = cluster.submissions()
    conversion = Conversion(shell, "cancelled", "--slurm", "local-lab", "--tasks-per-job", N_FILES)
    command = conversion.start()
    wait_for(conversion.running, 60, "a job that runs")
    assert cluster.run("scancel", next(iter(conversion.records().values())).job_id).returncode == 0
    output, code = ended(command, 60)
    assert code != 0
    assert "it was cancelled" in output
    assert cluster.submissions() == before + 1


def test_all_jobs_are_cancelled_by_the_same_command(cluster, shell):
    conversion = Conversion(shell, "waiting", "--slurm", "local-lab")
    cluster.run("scontrol", "update", "partitionname=main", "state=down")
    try:
        command = conversion.start()
        wait_for(lambda: len(conversion.records()) == N_FILES, 60, "all jobs")
        done = Conversion(shell, "waiting", "--slurm", "local-lab", "--cancel-jobs", "True").run()
        output, code = ended(command, 60)
    finally:
        cluster.run("scontrol", "update", "partitionname=main", "state=up")
    assert done.count("CANCELLED") == N_FILES, done
    assert code != 0, output
    assert {record.state.name for record in conversion.records().values()} == {"CANCELLED"}
