"""Check of the nodes before the ranks start: one task per node reports file systems, clock, GPUs and version.

`python -m bhive_mltf.slurm.batch_step.preflight PROBE TOKEN SCRATCH` prints one line of JSON;
`check_nodes` starts it and judges.
"""

from __future__ import annotations

import contextlib
import json
import os
import resource
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from bhive_mltf import __version__
from bhive_mltf.files import checks
from bhive_mltf.files.checks import MAX_SKEW_S, MIN_FREE_BYTES, Level
from bhive_mltf.ranks.files import NEEDS_GPU_VARIABLE
from bhive_mltf.ranks.gpus import count_gpus
from bhive_mltf.slurm.batch_step import steps
from bhive_mltf.slurm.batch_step.allocation import Allocation
from bhive_mltf.slurm.job import JobSpec

TIMEOUT_S = 300.0
# A network file system may show another node's file only after its cache has run out.
_VISIBLE_WITHIN_S = 20.0
_ADAPTERS = Path("/sys/class/infiniband")
_LOCKED_BYTES = 2**30


@dataclass(frozen=True)
class Report:
    """The report of one node; `problem` is a sentence about it, or empty."""

    node: str
    time: float
    version: str
    gpus: int
    free_bytes: int
    problem: str = ""


def check_nodes(allocation: Allocation, spec: JobSpec, variables: Mapping[str, str]) -> str:
    """Look at all nodes of the allocation; a sentence that names what is wrong where, empty when nothing is.

    Each node must see the probe that the submitting command wrote, and writes a file that must be seen from here.
    """
    folder = spec.folder
    for left in folder.glob(f"{spec.probe}.*"):
        left.unlink(missing_ok=True)
    program, outside = steps.srun(spec, variables)
    begun = time.time()
    try:
        done = subprocess.run(
            _command(allocation, spec),
            executable=program,
            env=outside,
            capture_output=True,
            text=True,
            timeout=TIMEOUT_S,
            check=False,
        )
    except subprocess.TimeoutExpired:
        return f"the nodes {', '.join(allocation.nodes)} did not answer within {TIMEOUT_S:.0f} s"
    ended = time.time()
    reports = _reports(done.stdout)
    problems = [_silence(node, done.stderr) for node in allocation.nodes if node not in reports]
    problems += [text for node in sorted(reports) if (text := _problem(reports[node], spec, begun, ended))]
    return "; ".join(problems)


def _command(allocation: Allocation, spec: JobSpec) -> list[str]:
    return [
        *steps.once_per_node(len(allocation.nodes), spec),
        sys.executable,
        "-m",
        "bhive_mltf.slurm.batch_step.preflight",
        str(spec.folder / spec.probe),
        spec.token,
        spec.scratch,
    ]


def _reports(text: str) -> dict[str, Report]:
    found = {}
    for line in text.splitlines():
        with contextlib.suppress(ValueError, TypeError):
            report = Report(**json.loads(line))
            found[report.node] = report
    return found


def _silence(node: str, errors: str) -> str:
    lines = [line for line in errors.splitlines() if line.strip()]
    last = f" ({lines[-1].strip()})" if lines else ""
    return f"node {node} cannot run {sys.executable} with bhive_mltf{last}"


def _problem(report: Report, spec: JobSpec, begun: float, ended: float) -> str:
    folder = spec.folder
    skew = max(begun - report.time, report.time - ended, 0.0)
    if report.problem:
        problem = report.problem
    elif not _appears(folder / f"{spec.probe}.{report.node}"):
        problem = f"writes to {folder}, but that is not seen on the first node: it is not one shared file system"
    elif skew > MAX_SKEW_S:
        problem = f"has a clock that is {skew:.0f} s off"
    elif report.gpus < spec.gpus_per_node:
        problem = f"shows {report.gpus} GPUs, but {spec.gpus_per_node} were asked for"
    elif report.free_bytes < MIN_FREE_BYTES:
        problem = f"has {report.free_bytes / 2**20:.0f} MiB left in {folder}: make room"
    elif report.version != __version__:
        problem = f"has bhive_mltf {report.version}, but the first node has {__version__}"
    else:
        return ""
    return f"node {report.node} {problem}"


def _appears(path: Path) -> bool:
    deadline = time.monotonic() + _VISIBLE_WITHIN_S
    while not path.exists():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.2)
    return True


def inspect_node(probe: Path, token: str, scratch: str = "") -> Report:
    """The report of this node; makes its directory for temporary files."""
    node = os.environ.get("SLURMD_NODENAME") or socket.gethostname()
    problem, free = "", 0
    try:
        if probe.read_text(encoding="utf-8") != token:
            problem = f"sees another {probe} than the one of this job: it is not the file system of the outputs"
        probe.with_name(f"{probe.name}.{node}").write_text(node, encoding="utf-8")
        free = shutil.disk_usage(probe.parent).free
    except OSError as error:
        problem = f"cannot use {probe.parent}: {error.strerror or error}"
    # room is judged where all reports are
    findings = [] if problem else checks.look_at_folder(probe.parent)
    problem = problem or next((f.text for f in findings if f.level is Level.PROBLEM and f.subject != "space"), "")
    if scratch and not problem:
        problem = _make(Path(os.path.expandvars(scratch)))
    problem = problem or network_problem(os.environ)
    return Report(node, time.time(), __version__, count_gpus(os.environ), free, problem)


def network_problem(environment: Mapping[str, str], adapters: Path = _ADAPTERS) -> str:
    """What keeps ranks of several nodes from talking as the profile asks; empty for one node.

    gloo wants an interface by its exact name; NCCL locks its buffers in memory where there are InfiniBand or RoCE
    adapters, which are folders of `adapters`.
    """
    if int(environment.get("SLURM_JOB_NUM_NODES", "1")) < 2:
        return ""
    there = {name for _, name in socket.if_nameindex()}
    for name in filter(None, environment.get("GLOO_SOCKET_IFNAME", "").split(",")):
        if name not in there:
            return f"has no interface {name} ({', '.join(sorted(there))}): correct `network` of the profile"
    by_adapter = adapters.is_dir() and any(adapters.iterdir()) and environment.get("NCCL_IB_DISABLE", "0") != "1"
    limit, _ = resource.getrlimit(resource.RLIMIT_MEMLOCK)
    if by_adapter and environment.get(NEEDS_GPU_VARIABLE) and 0 <= limit < _LOCKED_BYTES:
        return (
            f"lets a process lock {limit / 2**20:.0f} MiB of memory, but NCCL needs more for its adapters: raise the "
            "limit (LimitMEMLOCK=infinity of slurmd), or set NCCL_IB_DISABLE to 1 in the profile"
        )
    return ""


def _make(scratch: Path) -> str:
    try:
        scratch.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        return f"cannot make {scratch}, the `scratch` of the profile: {error.strerror or error}"
    return "" if os.access(scratch, os.W_OK) else f"cannot write to {scratch}, the `scratch` of the profile"


def main(arguments: Sequence[str]) -> int:
    """Print the report of this node."""
    sys.stdout.write(json.dumps(asdict(inspect_node(Path(arguments[0]), *arguments[1:]))) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
