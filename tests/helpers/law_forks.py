"""Law commands in forks of processes that have imported what takes seconds; all else is as in a shell.

`python -m tests.helpers.law_forks FOLDER PID` returns when two servers listen at sockets in the folder, which end with
the process PID: `bare` has not imported law, which reads the environment as it is imported; `law` has, with this
process's environment. Each connection brings a command and the file for its output.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any, NoReturn

SLOW_IMPORTS = (
    "torch", "torch._dynamo", "torch.distributed.launcher.api", "mlflow", "mlflow.store.tracking.sqlalchemy_store",
    "pandas", "uproot", "awkward", "pyarrow.ipc", "pydantic", "matplotlib.pyplot", "mplhep", "scipy.stats", "yaml",
    "bhive_mltf.training.engine", "bhive_mltf.data.build.construct", "bhive_mltf.data.build.stage",
)  # fmt: skip
LAW_IMPORTS = ("law.cli", "bhive_mltf.law.tasks")
LOOK_S = 1.0


def start(folder: Path, runner: int) -> None:
    """Start both servers; returns when they listen."""
    for name in SLOW_IMPORTS:
        # In upstream's versions some are not installed.
        with contextlib.suppress(ImportError):
            __import__(name)
    _in_background(folder / "bare", runner, ())
    _in_background(folder / "law", runner, LAW_IMPORTS)


def _in_background(address: Path, runner: int, imports: tuple[str, ...]) -> None:
    listens, says = os.pipe()
    if os.fork() == 0:
        try:
            os.setsid()
            for name in imports:
                __import__(name)
            with socket.socket(socket.AF_UNIX) as listener:
                listener.bind(str(address))
                listener.listen()
                os.write(says, b"!")
                os.close(says)
                _serve(listener, runner)
            shutil.rmtree(address.parent, ignore_errors=True)
        except BaseException:
            sys.excepthook(*sys.exc_info())
        finally:
            os._exit(0)
    os.close(says)
    assert os.read(listens, 1), f"the server of {address.name} commands has ended"
    os.close(listens)


def _serve(listener: socket.socket, runner: int) -> None:
    """Run commands until `runner` is gone; tell of each its process, then its exit code."""
    running: dict[int, socket.socket] = {}

    def reap(*_: object) -> None:
        while running:
            pid, status = os.waitpid(-1, os.WNOHANG)
            if not pid:
                return
            with running.pop(pid) as connection, contextlib.suppress(OSError):
                connection.sendall(f"{os.waitstatus_to_exitcode(status)}\n".encode())

    signal.signal(signal.SIGCHLD, reap)
    listener.settimeout(LOOK_S)
    while True:
        try:
            connection, _ = listener.accept()
        except TimeoutError:
            if not Path("/proc", str(runner)).exists():
                return
            continue
        connection.setblocking(True)
        message, (output,), _, _ = socket.recv_fds(connection, 1 << 20, 1)
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGCHLD})
        pid = os.fork()
        if pid == 0:
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)
            signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGCHLD})
            os.setpgid(0, 0)
            for inherited in (listener, connection, *running.values()):
                inherited.close()
            _become(json.loads(message), output)
        os.close(output)
        running[pid] = connection
        with contextlib.suppress(OSError):
            connection.sendall(f"{pid}\n".encode())
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGCHLD})


def _become(command: dict[str, Any], output: int) -> NoReturn:
    """The `law` command as its console script runs it; never returns."""
    for number in (1, 2):
        os.dup2(output, number)
    os.chdir(command["cwd"])
    os.environ.clear()
    os.environ.update(command["env"])
    sys.path[:0] = [p for p in os.environ.get("PYTHONPATH", "").split(":") if p and p not in sys.path]
    sys.argv = command["argv"]
    from law.cli import run as law

    from bhive_mltf.ranks.process import leave

    code = 1
    try:
        code = law() or 0
    except SystemExit as stop:
        code = stop.code if isinstance(stop.code, int) else int(stop.code is not None)
    except BaseException:
        sys.excepthook(*sys.exc_info())
    finally:
        # the threads of libraries, for which an interpreter waits as it ends, did not come through the fork
        leave(code)


def start_servers(environment, runner):
    """Start both for the time that the process `runner` lives; the folder of their sockets, whose path is short."""
    folder = tempfile.mkdtemp(prefix="bhive-law-")
    command = [sys.executable, "-m", "tests.helpers.law_forks", folder, str(runner)]
    subprocess.run(command, cwd=Path(__file__).parents[2], env=environment, check=True)
    (Path(folder) / "settings").write_text(json.dumps(_law_settings(environment)))
    return folder


def _law_settings(environment):
    """What law and luigi read of an environment when they are imported."""
    return {name: value for name, value in environment.items() if name.startswith(("LAW_", "LUIGI_", "PYTHONPATH"))}


def run(folder, argv, env, cwd, output, timeout):
    """Run a law command in a fork; its exit code. Kills it after `timeout` seconds and raises TimeoutError."""
    settings = json.loads((Path(folder) / "settings").read_text())
    with socket.socket(socket.AF_UNIX) as connection:
        connection.connect(f"{folder}/{'law' if _law_settings(env) == settings else 'bare'}")
        connection.settimeout(timeout)
        message = json.dumps({"argv": argv, "env": env, "cwd": str(cwd)}).encode()
        socket.send_fds(connection, [message], [output])
        with connection.makefile() as answers:
            pid = int(answers.readline())
            try:
                return int(answers.readline())
            except TimeoutError:
                os.killpg(pid, signal.SIGKILL)
                raise


if __name__ == "__main__":
    start(Path(sys.argv[1]), int(sys.argv[2]))
