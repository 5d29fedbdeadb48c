"""`python -m bhive_mltf.gateway.inside.launch PLAN`: runs a project on one node of its job.

Started by srun outside the sandbox: it opens the relay, starts the sandbox, and leaves word of a project that failed,
which the batch step reads. Nothing that the project does changes that word.
"""

from __future__ import annotations

import json
import logging
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from bhive_mltf.gateway.inside import disk, sandbox, spawn
from bhive_mltf.gateway.inside.plan import BEGUN, LaunchPlan
from bhive_mltf.gateway.inside.relay import Relay
from bhive_mltf.ranks import srun
from bhive_mltf.ranks.files import RankError

logger = logging.getLogger(__name__)
_START_FAILED: Final = 126
# How long a project that was told to end may take; SLURM's own KillWait is the site's.
_GRACE_S: Final = 5.0
_LOOK_S: Final = 2.0
STOP_NAME: Final = "stop"
# Where ranks of one node meet; with a network of its own every job may have the same.
_PORT: Final = "29500"


def run(plan: LaunchPlan, rank: int) -> int:
    """Run the project on this node, one of those of the step; the exit code for srun.

    It is 0 for a project that has saved and goes on later: srun would kill its other ranks.
    """
    folder = Path(tempfile.mkdtemp(prefix="mltf-"))
    warning, what = _Warning(folder / "run" / STOP_NAME), ""
    try:
        (folder / "run").mkdir()
        with Relay(folder / "run" / "relay", plan.tracking_url, Path(plan.token_file)).running() as relay:
            _begin(plan, rank)
            process = _start(plan, folder, relay.secret, rank)
            warning.listen()
            code, what = _wait(process, plan)
    except OSError as error:
        logger.error("the project cannot be started: %s", error)  # noqa: TRY400 - a sentence
        code = _START_FAILED
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    if code == spawn.SAVED and plan.resume and warning.came:
        srun.leave_stopped_note(-1, signal.SIGUSR2)
        return 0
    if code:
        _leave_word(plan, rank, code, what)
    return code


def _begin(plan: LaunchPlan, rank: int) -> None:
    """Say that the project begins on this node; FileExistsError when another job of the same submission has done so.

    A job that the scheduler lost is handed in again if nothing says this: whatever happens, a project runs once.
    """
    path, name = Path(plan.token_file).with_name(f"{BEGUN}{rank}"), os.environ.get("SLURM_JOB_NAME", "")
    try:
        with path.open("x", encoding="utf-8") as file:
            file.write(name)
    except FileExistsError:
        if path.read_text(encoding="utf-8") != name:
            raise


class _Warning:
    """The warning before the time limit: a file that the sandbox sees appears."""

    def __init__(self, path: Path) -> None:
        self._path, self.came = path, False

    def listen(self) -> None:
        """Wait for it from now on; what was started before does not get the signal's handler."""
        signal.signal(signal.SIGUSR2, self._note)

    def _note(self, *_: object) -> None:
        self.came = True
        self._path.touch()


def _start(plan: LaunchPlan, folder: Path, secret: str, rank: int) -> subprocess.Popen[bytes]:
    is_boxed = plan.runtime == "bubblewrap"
    place, ours = (sandbox.JOB, sandbox.OURS) if is_boxed else (plan.work, str(folder / "run"))
    inner = {
        "argv": plan.argv,
        "work": place,
        "socket": f"{ours}/relay",
        "secret": secret,
        "variables": {**_variables(plan, place), **_of_attempt(plan, f"{ours}/{STOP_NAME}")},
        "processes": plan.processes,
        "world": _world(plan, rank),
        "stop_file": f"{ours}/{STOP_NAME}" if plan.resume else "",
    }
    (folder / "run" / "plan.json").write_text(json.dumps(inner), encoding="utf-8")
    shutil.copy(spawn.__file__, folder / "run" / "spawn.py")
    arguments = [f"{plan.environment}/bin/python", "-I", "-S", f"{ours}/spawn.py", f"{ours}/plan.json"]
    # an ignored signal stays so in what is started: bubblewrap has no handler and would end on a warning
    for number in (signal.SIGUSR2, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)
    if not is_boxed:
        return subprocess.Popen(arguments, env={}, stdin=subprocess.DEVNULL)
    sandbox.leave_keyring()
    sandbox.write_etc(folder)
    return sandbox.start(plan, folder, arguments)


def _variables(plan: LaunchPlan, place: str) -> dict[str, str]:
    """The environment of the project: nothing of the node's own."""
    given = ("CUDA_VISIBLE_DEVICES", "OMP_NUM_THREADS", "SLURMD_NODENAME")
    network = ("NCCL_", "GLOO_", "UCX_")
    kept = [name for name in os.environ if name in given or name.startswith(network)]
    return {
        **{name: os.environ[name] for name in kept},
        "PATH": f"{plan.environment}/bin:/usr/local/bin:/usr/bin:/bin",
        "HOME": "/tmp",  # noqa: S108 - of the sandbox
        "TMPDIR": "/tmp",  # noqa: S108 - of the sandbox
        "LANG": "C.UTF-8",
        "PYTHONUNBUFFERED": "1",
        "MLFLOW_RUN_ID": plan.run_id,
        "MLFLOW_EXPERIMENT_ID": plan.experiment_id,
        "MLTF_CHECKPOINT_DIR": f"{place}/ckpt",
        "MLTF_OUTPUT_DIR": f"{place}/out",
        "GIT_PYTHON_REFRESH": "quiet",
        **plan.variables,
    }


def _of_attempt(plan: LaunchPlan, stop_file: str) -> dict[str, str]:
    """What a project that goes on from its checkpoints wants to know of this start."""
    number = srun.attempt()
    found = {"MLTF_ATTEMPT": str(number), "MLTF_RESUME": "1" if plan.resume and number > 1 else "0"}
    deadline = os.environ.get("SLURM_JOB_END_TIME", "")
    found |= {"MLTF_DEADLINE": deadline} if deadline.isdecimal() else {}
    return {**found, "MLTF_STOP_FILE": stop_file} if plan.resume else found


def _world(plan: LaunchPlan, rank: int) -> dict[str, str | int]:
    """Which ranks this node has, of how many, and where all meet."""
    nodes = int(os.environ.get("SLURM_STEP_NUM_TASKS") or 1)
    address = os.environ.get("MASTER_ADDR", "")
    # names of nodes may not resolve in the sandbox
    address = socket.gethostbyname(address) if nodes > 1 and address else "127.0.0.1"
    port = os.environ.get("MASTER_PORT") or _PORT
    return {"nodes": nodes, "node": rank, "ranks": plan.ranks_per_node, "address": address, "port": port}


def _wait(process: subprocess.Popen[bytes], plan: LaunchPlan) -> tuple[int, str]:
    """The exit code of the project, and why this launcher ended it, if it did.

    It does so a while after it was told to end, and when the job has too much on disk. With bubblewrap all processes
    end that the project has started.
    """
    told: list[float] = []
    # inside it is a signal like any other: only this process has to stay for a while
    signal.signal(signal.SIGTERM, lambda *_: told.append(time.monotonic()))
    what, next_look = "", time.monotonic() + _LOOK_S
    while True:
        try:
            code = process.wait(0.5)
        except subprocess.TimeoutExpired:
            now = time.monotonic()
            if told and now > told[0] + _GRACE_S:
                process.kill()
            elif plan.disk_bytes and now > next_look:
                found = disk.used((plan.work, plan.logs), process.pid)
                # a tree of many files is not looked at all the time
                next_look = time.monotonic() + max(_LOOK_S, 20 * (time.monotonic() - now))
                if found > plan.disk_bytes:
                    what = f"it had {found / 1e9:.3g} GB on disk, more than the {plan.disk_bytes / 1e9:.3g} GB of a job"
                    process.kill()
            continue
        return 128 - code if code < 0 else code, what


def _leave_word(plan: LaunchPlan, rank: int, code: int, what: str) -> None:
    """Tell the batch step that the project failed by itself, so that the same is not tried again."""
    if not what:
        is_killed = code > 128
        what = f"its command {f'was killed by signal {code - 128}' if is_killed else f'ended with exit code {code}'}"
    word = RankError(rank=rank, time=time.time(), kind="ProjectFailed", message=what, by_user=True)
    word.write(Path(plan.logs).parent)


def main(arguments: Sequence[str]) -> int:
    """Run the project of the plan named by the only argument."""
    logging.basicConfig(level=logging.INFO, format="mltf: %(message)s", stream=sys.stderr)
    return run(LaunchPlan.read(Path(arguments[0])), int(os.environ.get("SLURM_PROCID") or 0))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
