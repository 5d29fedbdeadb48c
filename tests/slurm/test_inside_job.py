"""What the batch step decides from its environment, without a cluster."""

import os
import resource
import socket
import subprocess
import sys
import time

import pytest

from bhive_mltf import __version__
from bhive_mltf.ranks import srun
from bhive_mltf.ranks.files import JOB_FOLDER_VARIABLE, NEEDS_GPU_VARIABLE
from bhive_mltf.slurm.batch_step import allocation, preflight, staging, steps
from bhive_mltf.slurm.batch_step.allocation import Allocation
from bhive_mltf.slurm.job import JobSpec
from tests.slurm.conftest import programs


@pytest.fixture
def spec(tmp_path):
    made = JobSpec(name="a", kind="ranks", command=("python", "-m", "x"), directory=tmp_path, nodes=2, ranks_per_node=2)
    made.write()
    return made


ALLOCATION = Allocation("41", 1, ("localhost", "n2"))


def test_a_rank_finds_the_folder_of_its_job(spec, monkeypatch):
    monkeypatch.setenv(JOB_FOLDER_VARIABLE, steps.environment(spec, ALLOCATION)[JOB_FOLDER_VARIABLE])
    assert srun.job_folder() == spec.folder


def test_port_is_free_and_of_the_job(monkeypatch):
    with socket.socket() as taken:
        taken.bind(("", 20_041))
        taken.listen()
        assert ALLOCATION.port == 20_142
    assert ALLOCATION.port == 20_041


def test_master_address_falls_back_to_what_resolves(monkeypatch):
    assert ALLOCATION.master_address() == "localhost"
    unknown = Allocation("41", 1, ("no-such-host.invalid", "n2"))
    monkeypatch.setattr(allocation, "_answer", lambda *command: "NodeName=x NodeAddr=127.0.0.1 NodeHostName=x")
    assert unknown.master_address() == "127.0.0.1"
    monkeypatch.setattr(allocation, "_answer", lambda *command: "")
    monkeypatch.setenv("SLURM_LAUNCH_NODE_IPADDR", "127.0.0.3")
    assert unknown.master_address() == "127.0.0.3"


def test_srun_gets_a_task_and_a_log_per_rank_in_a_percent_folder(tmp_path):
    odd = JobSpec(name="a", kind="ranks", command=("python", "x y"), directory=tmp_path / "50 %t", nodes=2)
    command = steps.ranks(odd)
    assert command[-2:] == ["python", "x y"]
    assert "--ntasks=2" in command
    assert f"--output={tmp_path}/50 %%t/logs/rank_%t.log" in command
    odder = JobSpec(name="a", kind="ranks", command=("echo", "hello"), directory=tmp_path / "a\\b '%t")
    (odder.directory / "logs").mkdir(parents=True)
    command = steps.ranks(odder)
    assert "--output=/dev/null" in command
    subprocess.run(command[command.index("bash") :], env={**os.environ, "SLURM_PROCID": "3"}, check=True)
    assert (odder.directory / "logs/rank_3.log").read_text() == "hello\n"


def test_a_command_is_marked_and_no_rank_gets_a_run_from_outside(spec, monkeypatch):
    monkeypatch.setenv("MLFLOW_RUN_ID", "outside")
    variables = steps.environment(spec.model_copy(update={"kind": "command"}), ALLOCATION)
    assert variables["BHIVE_MLTF_INSIDE_JOB"] == "41"
    assert "MLFLOW_RUN_ID" not in variables
    assert "BHIVE_MLTF_INSIDE_JOB" not in steps.environment(spec, ALLOCATION)


def report(**values):
    now = time.time()
    return preflight.Report(
        **{"node": "n2", "time": now, "version": __version__, "gpus": 0, "free_bytes": 10**12, **values}
    )


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"time": time.time() - 500}, "clock that is"),
        ({"free_bytes": 10**6}, "1 MiB left"),
        ({"version": "0.0.0"}, "bhive_mltf 0.0.0"),
        ({"gpus": 1}, "shows 1 GPUs, but 2 were asked for"),
        ({"problem": "cannot use /x: gone"}, "node n2 cannot use /x"),
    ],
)
def test_preflight_names_the_node_and_what_is_wrong(spec, values, words):
    (spec.folder / "probe.n2").touch()
    asked = spec.model_copy(update={"gpus_per_node": 2 if "gpus" in values else 0})
    now = time.time()
    assert words in preflight._problem(report(**values), asked, now, now)
    assert preflight._problem(report(), spec, now, time.time()) == ""


def test_preflight_sees_a_folder_of_another_machine(spec, monkeypatch):
    monkeypatch.setenv("SLURMD_NODENAME", "n7")
    monkeypatch.setattr(preflight, "_VISIBLE_WITHIN_S", 0.0)
    now = time.time()
    assert "not one shared file system" in preflight._problem(report(node="n8"), spec, now, now + 9)
    assert preflight.inspect_node(spec.folder / "probe", spec.token).problem == ""
    assert (spec.folder / "probe.n7").exists()
    assert "sees another" in preflight.inspect_node(spec.folder / "probe", "other").problem
    assert "cannot use" in preflight.inspect_node(spec.folder / "nowhere" / "probe", spec.token).problem


def test_ranks_of_a_job_with_gpus_need_one(spec):
    assert steps.environment(spec.model_copy(update={"gpus_per_node": 2}), ALLOCATION)[NEEDS_GPU_VARIABLE]
    assert NEEDS_GPU_VARIABLE not in steps.environment(spec, ALLOCATION)


def test_the_network_of_several_nodes_is_looked_at(tmp_path, monkeypatch):
    two = {"SLURM_JOB_NUM_NODES": "2", "GLOO_SOCKET_IFNAME": "lo"}
    assert preflight.network_problem(two, tmp_path / "none") == ""
    odd = {**two, "GLOO_SOCKET_IFNAME": "ens1"}
    assert "has no interface ens1 (" in preflight.network_problem(odd, tmp_path)
    assert preflight.network_problem({**odd, "SLURM_JOB_NUM_NODES": "1"}, tmp_path) == ""
    (tmp_path / "mlx5_0").mkdir()
    monkeypatch.setattr(resource, "getrlimit", lambda _: (8 * 2**20, 8 * 2**20))
    assert preflight.network_problem(two, tmp_path) == ""  # gloo locks nothing
    gpus = {**two, NEEDS_GPU_VARIABLE: "1"}
    assert "lets a process lock 8 MiB" in preflight.network_problem(gpus, tmp_path)
    assert preflight.network_problem({**gpus, "NCCL_IB_DISABLE": "1"}, tmp_path) == ""
    monkeypatch.setattr(resource, "getrlimit", lambda _: (resource.RLIM_INFINITY,) * 2)
    assert preflight.network_problem(gpus, tmp_path) == ""


def test_temporary_files_go_to_the_scratch_of_the_profile(spec, tmp_path, monkeypatch):
    monkeypatch.setenv("USER", "jo")
    monkeypatch.delenv("TMPDIR", raising=False)
    inside = spec.model_copy(update={"scratch": f"{tmp_path}/scratch/$USER"})
    assert steps.environment(inside, ALLOCATION)["TMPDIR"] == f"{tmp_path}/scratch/jo"
    assert preflight._command(ALLOCATION, inside)[-1] == inside.scratch
    assert preflight.inspect_node(spec.folder / "probe", spec.token, inside.scratch).problem == ""
    assert (tmp_path / "scratch/jo").is_dir()
    assert "TMPDIR" not in steps.environment(spec, ALLOCATION)
    wrong = preflight.inspect_node(spec.folder / "probe", spec.token, f"{spec.folder}/probe/x")
    assert "the `scratch` of the profile: Not a directory" in wrong.problem


def test_copies_of_sets_are_optional_those_of_lost_jobs_go(spec, tmp_path, monkeypatch):
    assert staging.make_copies(spec, ALLOCATION, {"A": "1"}) == {"A": "1"}
    monkeypatch.setenv("PATH", programs(tmp_path / "bin", squeue="echo 41; echo 42"))
    place, kept, lost = (tmp_path / f"nvme/bhive_{job_id}" for job_id in (41, 42, 7))
    for folder in (place / "set", kept, lost, tmp_path / "set"):
        folder.mkdir(parents=True)
    (tmp_path / "set/manifest.json").write_text("{}")
    assert "0.0 MB of training sets copied" in staging.copy_sets(place, [tmp_path / "set"])
    assert [path.exists() for path in (place, place / "set", kept, lost)] == [True, False, True, False]
    said = staging.copy_sets(place, [tmp_path / "nowhere"])
    assert "read where they are, since they cannot be copied: [Errno 2] No such file" in said
    assert not place.exists()


def test_each_rank_and_each_node_check_runs_inside_the_image(spec, monkeypatch):
    """srun's part of what `golden/container.sh` begins."""
    box = ("apptainer", "exec", "--nv", "--bind=/data", "/sw/a b.sif")
    inside = spec.model_copy(update={"wrapper": box})
    command = steps.ranks(inside)
    assert command[command.index("apptainer") :] == [*box, "python", "-m", "x"]
    command = preflight._command(ALLOCATION, inside)
    assert command[command.index("apptainer") :][: len(box) + 1] == [*box, sys.executable]
    # the image's PATH is for what is inside, the node's for what srun starts
    monkeypatch.setenv("BHIVE_MLTF_HOST_PATH", "/host/bin")
    _, outside = steps.srun(inside, {"PATH": "/image/bin", "LD_LIBRARY_PATH": "/.singularity.d/libs", "A": "1"})
    assert outside == {"PATH": "/host/bin", "A": "1"}
    assert steps.srun(spec, {"PATH": "/bin"})[1] == {"PATH": "/bin"}
