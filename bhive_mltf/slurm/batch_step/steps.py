"""What the batch step starts: one task per rank by srun, or one command here."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Mapping

from bhive_mltf.ranks.files import JOB_FOLDER_VARIABLE, NEEDS_GPU_VARIABLE, STOPPED_NAME, log_path, prepare_logs
from bhive_mltf.slurm.batch_step.allocation import Allocation
from bhive_mltf.slurm.job import HOST_PATH, JobSpec

# A command that runs inside a job never makes another one.
INSIDE_VARIABLE = "BHIVE_MLTF_INSIDE_JOB"
# Variables of the batch step that would shape every srun in it.
_SHAPING = (
    "SLURM_CPU_BIND",
    "SLURM_CPU_BIND_TYPE",
    "SLURM_CPU_BIND_LIST",
    "SLURM_CPU_BIND_VERBOSE",
    "SLURM_EXPORT_ENV",
)
_NOT_HANDED_ON = ("MLFLOW_RUN_ID", "RANK", "LOCAL_RANK", "WORLD_SIZE", "BHIVE_MLTF_LAUNCHER_PID")


def environment(spec: JobSpec, allocation: Allocation) -> dict[str, str]:
    """Variables of all that is started."""
    kept = {name: value for name, value in os.environ.items() if name not in (*_SHAPING, *_NOT_HANDED_ON)}
    threads = str(spec.threads_per_rank or spec.cpus_per_rank)
    ours = {JOB_FOLDER_VARIABLE: str(spec.folder), "PYTHONUNBUFFERED": "1"}
    if spec.gpus_per_node:
        ours[NEEDS_GPU_VARIABLE] = "1"
    if spec.scratch:
        # made on every node by the check of the nodes
        ours["TMPDIR"] = os.path.expandvars(spec.scratch)
    if spec.kind == "command":
        return {**kept, **ours, INSIDE_VARIABLE: allocation.job_id}
    meeting = {"MASTER_ADDR": allocation.master_address(), "MASTER_PORT": str(allocation.port)}
    return {"OMP_NUM_THREADS": threads, **kept, **ours, **meeting}


def srun(spec: JobSpec, variables: Mapping[str, str]) -> tuple[str, dict[str, str]]:
    """The program srun, and the variables of what it starts: those outside the image where there is one."""
    program = shutil.which("srun") or "srun"
    outside = os.environ.get(HOST_PATH)
    if not spec.wrapper or outside is None:
        return program, dict(variables)
    kept = {name: value for name, value in variables.items() if name not in (HOST_PATH, "LD_LIBRARY_PATH")}
    return program, {**kept, "PATH": outside}


def once_per_node(nodes: int, spec: JobSpec, *options: str) -> list[str]:
    """The beginning of an srun command that starts something once on each of so many nodes."""
    return [
        "srun",
        f"--nodes={nodes}",
        f"--ntasks={nodes}",
        "--ntasks-per-node=1",
        "--cpus-per-task=1",
        "--kill-on-bad-exit=0",
        *options,
        *spec.wrapper,
    ]


def ranks(spec: JobSpec) -> list[str]:
    """The srun command of all ranks; each rank's output is added to `logs/rank_<r>.log` beside the outputs."""
    pattern = log_path(spec.directory, "%t")
    folder = str(pattern.parent)
    # in the folder's own part a % would be a pattern, and a \\ ends all patterns: there each rank opens its log
    odd = "\\" in folder
    log = "/dev/null" if odd else f"{folder.replace('%', '%%')}/{pattern.name}"
    own = log_path(spec.directory, "$SLURM_PROCID").name
    opening = ["bash", "-c", f'exec "$@" >> "$0/{own}" 2>&1', folder] if odd else []
    return [
        "srun",
        "--kill-on-bad-exit=1",
        f"--nodes={spec.nodes}",
        f"--ntasks={spec.nodes * spec.ranks_per_node}",
        f"--ntasks-per-node={spec.ranks_per_node}",
        f"--cpus-per-task={spec.cpus_per_rank}",
        # ranks of a node fill one socket after the other, as its GPUs hang on them
        "--distribution=block:block",
        "--open-mode=append",
        f"--output={log}",
        f"--error={log}",
        *opening,
        *spec.wrapper,
        *spec.command,
    ]


def start(spec: JobSpec, variables: Mapping[str, str]) -> subprocess.Popen[bytes]:
    """Start ranks or command."""
    workdir = spec.workdir if spec.workdir and os.path.isdir(spec.workdir) else None  # noqa: PTH112 - a str or nothing
    if spec.kind == "command":
        return subprocess.Popen(spec.command, env=dict(variables), cwd=workdir)
    program, outside = srun(spec, variables)
    return subprocess.Popen(ranks(spec), executable=program, env=outside, cwd=workdir)


def clear(spec: JobSpec) -> None:
    """Make the folder of logs; remove what an earlier attempt left that could be taken for this one's."""
    prepare_logs(spec.directory, spec.nodes * spec.ranks_per_node)
    (spec.folder / STOPPED_NAME).unlink(missing_ok=True)
