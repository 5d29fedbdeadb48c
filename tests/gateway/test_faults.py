"""Worker, API, database and scheduler killed at every point: no job lost, none handed in twice, all soon over."""

import re
from pathlib import Path

import pytest

from bhive_mltf import gateway
from bhive_mltf.gateway.store.tables import State
from tests.gateway import needs
from tests.gateway.rig import LOG, Rig, ScriptedCluster

pytestmark = pytest.mark.gateway
PACKAGE = Path(gateway.__file__).parent
STATUS = {"succeeded": "FINISHED", "failed": "FAILED", "cancelled": "KILLED"}

# while an environment is built
OF_A_BUILD = ("after_lock", "in_build", "after_build")
# point -> how its job ends
OF_THE_WORKER = {
    **dict.fromkeys(
        (
            *("in_unpack", "after_unpack", "before_sbatch", "after_sbatch", "after_record", "after_end"),
            *("after_status", "at_preparing", "at_submitting", "at_queued", "at_running", "at_closing"),
            *("at_succeeded", *OF_A_BUILD),
        ),
        "succeeded",
    ),
    "at_failed": "failed",
    "after_scancel": "cancelled",
    "at_cancelled": "cancelled",
}
OF_THE_API = {
    **dict.fromkeys(
        (
            *("in_upload", "after_upload", "after_inspection", "after_blob", "after_project", "in_row", "after_row"),
            *("after_experiment", "after_run", "after_scheduled", "after_accept", "in_log"),
        ),
        "succeeded",
    ),
    "in_cancel": "cancelled",
    "after_cancel": "cancelled",
}
POINTS = {**OF_THE_WORKER, **OF_THE_API}
VICTIMS = ("worker", "api", "database", "scheduler")


def test_every_fault_point_has_a_row():
    text = "".join(path.read_text() for path in PACKAGE.rglob("*.py"))
    named = set(re.findall(r'faults\.point\("(\w+)"\)', text))
    states = {f"at_{state.value}" for state in State} - {"at_creating", "at_accepted", "at_refused"}
    assert named | states == set(POINTS)
    assert len(POINTS) >= 25


class Rigs:
    """One rig for many tests; after one that fails the next has a new one."""

    def __init__(self, make):
        self.make, self.rig, self.is_used = make, None, True

    def take(self):
        if self.is_used:
            self.close()
            self.rig = self.make()
        self.is_used = True
        return self.rig

    def close(self):
        if self.rig is not None:
            self.rig.close()
            self.rig = None


@pytest.fixture(scope="module")
def rigs(tmp_path_factory, request):
    def on_postgresql():
        folder = tmp_path_factory.mktemp("postgresql")
        return Rig(folder, ScriptedCluster(folder), request.getfixturevalue("postgres"))

    def on_sqlite():
        folder = tmp_path_factory.mktemp("sqlite")
        return Rig(folder, ScriptedCluster(folder))

    made = {"postgresql": Rigs(on_postgresql), "sqlite": Rigs(on_sqlite)}
    yield made
    for one in made.values():
        one.close()


def check(rig, visit):
    """One job, one run, one end, and all of the log."""
    job = rig.newest(visit.label)
    assert job.state == visit.end, rig.account_of(job)
    assert job.id == visit.id
    assert list(rig.cluster.of(rig.folder_of(job))) == [job.job_id]
    (run,) = rig.mlflow.of(job.id)
    assert run["status"] == STATUS[visit.end]
    # a build comes first, if there is one
    built, _, log = visit.log.decode().partition("begin\n")
    log = f"begin\n{log}"
    assert ("mltf: environment" in built) == (job.env_key != "") == (job.environment != "profile")
    # a real cluster adds that it cancels
    assert log.startswith(LOG[visit.end])
    assert log.count("\n") == LOG[visit.end].count("\n") or "CANCELLED" in log
    events = rig.events(job)
    assert [before for before, _ in events[1:]] == [after for _, after in events[:-1]]
    assert len([after for _, after in events if after == visit.end]) == 1
    assert not (rig.folder_of(job) / "private" / "token").exists()


def environment_of(point):
    """What the project asks for, so that the point is reached."""
    if point not in OF_A_BUILD:
        return "profile"
    needs.builds()
    return "need.txt"


def is_long(point, victim):
    """Whether the victim neither waits at the point nor is the database; see also `test_controller_killed`."""
    return victim not in ("database", "api" if point in OF_THE_API else "worker")


ROWS = [
    pytest.param(point, victim, marks=[pytest.mark.long] if is_long(point, victim) else [])
    for victim in VICTIMS
    for point in POINTS
]


@pytest.mark.parametrize(("point", "victim"), ROWS)
def test_nothing_is_lost_and_nothing_doubled(rigs, point, victim):
    # a file has no server that could be killed: the others share the two kinds of databases
    one = rigs["postgresql" if victim in ("database", "scheduler") else "sqlite"]
    rig = one.take()
    check(rig, rig.strike(point, victim, POINTS[point], environment_of(point)))
    one.is_used = False


@pytest.mark.parametrize(("point", "victim"), [("after_sbatch", "worker"), ("at_closing", "worker"), ("in_row", "api")])
def test_nothing_is_lost_on_postgresql(rigs, point, victim):
    one = rigs["postgresql"]
    rig = one.take()
    check(rig, rig.strike(point, victim, POINTS[point]))
    one.is_used = False
