"""One job per directory, on the real cluster."""

import pytest

from bhive_mltf.slurm import dispatch, job
from bhive_mltf.slurm.client import Slurm

pytestmark = pytest.mark.slurm


def spec(profile, directory, command=("true",), **options):
    return job.make(profile, name="a test", kind="command", command=command, directory=directory, **options)


def test_a_second_command_follows_the_first_ones_job(cluster, profile, client, tmp_path):
    before = cluster.submissions()
    first = dispatch.submit_or_attach(profile, spec(profile, tmp_path, ("sleep", "60")), client)
    second = dispatch.submit_or_attach(profile, spec(profile, tmp_path, ("sleep", "60")), Slurm.of(profile))
    assert first.job_id == second.job_id
    assert cluster.submissions() == before + 1
