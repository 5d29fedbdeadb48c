"""The controller of a real cluster killed at points of the worker; see `test_faults` for what else is killed."""

import itertools

import pytest

from tests.gateway.rig import RealCluster, Rig
from tests.gateway.test_faults import OF_A_BUILD, OF_THE_WORKER, POINTS, Rigs, check, environment_of

pytestmark = [pytest.mark.gateway, pytest.mark.slurm]


@pytest.fixture(scope="module")
def lab_rigs(stack):
    """On the cluster of the session, in a folder that its nodes see."""
    numbers = itertools.count()

    def make():
        folder = stack.folder / f"faults{next(numbers)}"
        folder.mkdir()
        return Rig(folder, RealCluster(folder, stack.lab))

    made = Rigs(make)
    yield made
    made.close()


# while it submits, just after, while it is asked, and while it cancels
REAL = ("before_sbatch", "after_sbatch", "at_running", "after_scancel")
ENDED = ("after_end", "after_status", "at_closing", "at_succeeded", "at_failed")
# when there is no job yet
BEFORE = ("in_unpack", "after_unpack", "at_preparing", *OF_A_BUILD, "at_submitting")
REST = [point for point in OF_THE_WORKER if point not in REAL]


@pytest.mark.parametrize("point", [*REAL, *(pytest.param(one, marks=pytest.mark.long) for one in REST)])
def test_controller_killed_on_a_real_cluster(stack, lab_rigs, point):
    rig = lab_rigs.take()
    before = stack.lab.submissions()
    # a project that has begun is not begun again: there the controller must know its job
    rig.cluster.is_fresh = "sbatch" in point or point in ("after_record", "at_queued")
    rig.cluster.has_job = point not in BEFORE
    rig.cluster.may_end = point in ENDED
    visit = rig.strike(point, "scheduler", POINTS[point], environment_of(point))
    check(rig, visit)
    # what the controller took in its last seconds it has forgotten
    lost = rig.events(rig.newest(visit.label)).count(("queued", "submitting"))
    assert stack.lab.submissions() == before + 1 + lost
    assert visit.log.count(b"begin") == 1
    lab_rigs.is_used = False
