"""Law commands in forks of one process that has imported what takes seconds; all else is as in a shell.

`python -m tests.helpers.law_forks SOCKET`: each connection brings a command and the file for its output.
"""

from __future__ import annotations

import json
import os
import signal
import socket
import sys
from typing import Any, NoReturn

# Not law and luigi: they read the environment of the command when they are imported.
SLOW_IMPORTS = (
    "torch", "torch.distributed.launcher.api", "mlflow", "pandas", "uproot", "awkward", "pyarrow.ipc", "pydantic",
    "matplotlib.pyplot", "mplhep", "scipy.stats", "yaml",
)  # fmt: skip


def serve(address: str) -> None:
    """Take commands until the socket's other side is gone for good."""
    for name in SLOW_IMPORTS:
        __import__(name)
    # children are reaped by the system
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(address)
        listener.listen()
        while True:
            connection, _ = listener.accept()
            if os.fork() == 0:
                signal.signal(signal.SIGCHLD, signal.SIG_DFL)
                _attend(connection)
                os._exit(0)
            connection.close()


def _attend(connection: socket.socket) -> None:
    """Run one command in a process group of its own; tell its id, then its exit code."""
    message, (output,), _, _ = socket.recv_fds(connection, 1 << 20, 1)
    pid = os.fork()
    if pid == 0:
        os.setpgid(0, 0)
        connection.close()
        _become(json.loads(message), output)
    os.close(output)
    connection.sendall(f"{pid}\n".encode())
    _, status = os.waitpid(pid, 0)
    connection.sendall(f"{os.waitstatus_to_exitcode(status)}\n".encode())


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


def run(address, argv, env, cwd, output, timeout):
    """Run a law command in a fork; its exit code. Kills it after `timeout` seconds and raises TimeoutError."""
    with socket.socket(socket.AF_UNIX) as connection:
        connection.connect(str(address))
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
    serve(sys.argv[1])
