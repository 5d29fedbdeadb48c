"""The text of a batch script. Data lie in the job's spec; the script sets up an environment and starts Python."""

from __future__ import annotations

import math
import re
import shlex
from collections.abc import Iterator

from bhive_mltf.slurm.job import HOST_PATH, SPEC_NAME, JobSpec
from bhive_mltf.slurm.profiles import Profile

# Relative to the folder that holds the script: sbatch is started there, so that no path is part of an #SBATCH line.
LOG_PATTERN = "job_%j.log"
INSIDE = "bhive_mltf.slurm.batch_step"


def render(profile: Profile, spec: JobSpec) -> str:
    """The script of a job; the same text for the same profile and spec.

    sbatch must be started in `spec.folder`, where the job's log then lies.
    """
    shell = "#!/bin/bash -l" if profile.modules else "#!/bin/bash"
    options = [f"#SBATCH --{option}" for option in _options(profile, spec)]
    # SLURM reads % and \\ of the folder as parts of a pattern: there the script opens the log itself
    log = [f'exec >> "{LOG_PATTERN.replace("%j", "$SLURM_JOB_ID")}" 2>&1'] if _is_odd(spec) else []
    lines = [shell, *options, "", "set -e", *log, *_environment(profile, spec), *_start(profile, spec), ""]
    return "\n".join(lines)


def _is_odd(spec: JobSpec) -> bool:
    return "%" in str(spec.folder) or "\\" in str(spec.folder)


def _options(profile: Profile, spec: JobSpec) -> Iterator[str]:
    yield f"job-name={spec.job_name}"
    yield f"comment={_comment(spec.name)}"
    for name in ("partition", "account", "qos", "constraint"):
        if value := getattr(profile, name):
            yield f"{name}={value}"
    yield f"nodes={spec.nodes}"
    yield f"ntasks-per-node={spec.ranks_per_node}"
    yield f"cpus-per-task={spec.cpus_per_rank}"
    yield from _gpus(profile, spec)
    yield from _memory(profile, spec)
    yield f"time={_time(profile.hours)}"
    yield f"output={'/dev/null' if _is_odd(spec) else LOG_PATTERN}"
    yield "open-mode=append"
    yield "requeue" if profile.requeue else "no-requeue"
    # without `B:` it reaches the ranks and not the batch step
    yield f"signal=USR2@{profile.signal_seconds}"
    for name, value in profile.options.items():
        if value is not False:
            yield name if value is True else f"{name}={value}"


def _gpus(profile: Profile, spec: JobSpec) -> Iterator[str]:
    if spec.gpus_per_node and profile.gpu_style != "none":
        count = f"{profile.gpu_type}:{spec.gpus_per_node}" if profile.gpu_type else str(spec.gpus_per_node)
        yield f"gres=gpu:{count}" if profile.gpu_style == "gres" else f"gpus-per-node={count}"


def _memory(profile: Profile, spec: JobSpec) -> Iterator[str]:
    if profile.memory_per_cpu_gb:
        yield f"mem-per-cpu={_megabytes(profile.memory_per_cpu_gb)}M"
    elif profile.memory_per_gpu_gb:
        # per node, which SLURM takes with every style of asking for GPUs
        yield f"mem={_megabytes(profile.memory_per_gpu_gb * spec.gpus_per_node)}M"


def _megabytes(gigabytes: float) -> int:
    return math.ceil(gigabytes * 1000)


def _time(hours: float) -> str:
    """Whole minutes, SLURM's unit, rounded up."""
    minutes = math.ceil(round(hours * 60, 6))
    return f"{minutes // 1440}-{minutes // 60 % 24:02d}:{minutes % 60:02d}:00"


def _comment(name: str) -> str:
    return re.sub(r"[^A-Za-z0-9_.,:+-]+", "_", name).strip("_")[:100] or "bhive"


def _environment(profile: Profile, spec: JobSpec) -> Iterator[str]:
    if profile.modules:
        yield f"module load {shlex.join(profile.modules)}"
    if profile.venv:
        yield f"source {shlex.quote(f'{profile.venv}/bin/activate')}"
    yield from profile.setup
    for name, value in {**profile.environment, **_network(profile), **spec.environment}.items():
        yield f"export {name}={shlex.quote(value)}"


def _network(profile: Profile) -> dict[str, str]:
    interface = profile.network.interface
    # NCCL takes all that begin so, unless told that it is the whole name; gloo takes whole names only
    chosen = {"NCCL_SOCKET_IFNAME": f"={interface}", "GLOO_SOCKET_IFNAME": interface} if interface else {}
    return {**chosen, **profile.network.variables}


def _start(profile: Profile, spec: JobSpec) -> Iterator[str]:
    if spec.wrapper:
        # the image has a PATH of its own, and ranks are started from outside again
        yield f'export {HOST_PATH}="$PATH"'
    yield f"exec {shlex.join([*spec.wrapper, profile.python, '-m', INSIDE, str(spec.folder / SPEC_NAME)])}"
