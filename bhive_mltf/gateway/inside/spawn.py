"""The first program in the sandbox: opens the way to the relay on the loopback interface and runs the project.

Started as a file of its own, by the project's interpreter: the standard library only, and nothing of this package.
"""

import contextlib
import json
import os
import resource
import signal
import socket
import subprocess
import sys
import threading
import time
from typing import IO, Any

CHUNK = 2**18
# Exit code of a command that was warned and has saved (EX_TEMPFAIL).
SAVED = 75
# How long ranks have to end when another one failed; time between two warnings, which may meet no handler yet.
END_WITHIN_S = 15.0
REPEAT_S = 10.0
WRITING = threading.Lock()
COPYING: list[threading.Thread] = []


def main() -> int:
    """Run the command of the plan named by the only argument, once per rank; its exit code, 128 + N for signal N."""
    with open(sys.argv[1], encoding="utf-8") as file:  # noqa: PTH123 - a small program
        plan = json.load(file)
    server = socket.create_server(("127.0.0.1", 0), backlog=64)
    threading.Thread(target=serve, args=(server, plan["socket"]), daemon=True).start()
    port = server.getsockname()[1]
    variables = {**plan["variables"], "MLFLOW_TRACKING_URI": f"http://127.0.0.1:{port}/{plan['secret']}"}
    resource.setrlimit(resource.RLIMIT_NPROC, (plan["processes"], plan["processes"]))
    # the launcher ignores it, and so did this program from its start
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    try:
        ranks = [_start(plan, variables, local) for local in range(plan["world"]["ranks"])]
    except OSError as error:
        sys.stderr.write(f"the command cannot be started: {error.strerror}: {plan['argv'][0]}\n")
        return 127
    signal.signal(signal.SIGTERM, lambda *_: _terminate(ranks))
    return _wait(ranks, plan["stop_file"])


def _start(plan: dict[str, Any], variables: dict[str, str], local: int) -> subprocess.Popen[bytes]:
    """One rank: its place among all by the variables that torchrun sets too."""
    world = plan["world"]
    rank = world["node"] * world["ranks"] + local
    place = {
        "RANK": rank,
        "LOCAL_RANK": local,
        "WORLD_SIZE": world["nodes"] * world["ranks"],
        "LOCAL_WORLD_SIZE": world["ranks"],
        "NODE_RANK": world["node"],
        "NNODES": world["nodes"],
        "MASTER_ADDR": world["address"],
        "MASTER_PORT": world["port"],
    }
    environment = {**variables, **{name: str(value) for name, value in place.items()}}
    output = subprocess.PIPE if world["ranks"] > 1 else None
    # SIGUSR2 is ignored here, and so in what is started until it has a handler of its own
    process = subprocess.Popen(
        plan["argv"],
        env=environment,
        cwd=plan["work"],
        stdin=subprocess.DEVNULL,
        stdout=output,
        stderr=subprocess.STDOUT if output else None,
    )
    if process.stdout:
        COPYING.append(threading.Thread(target=_copy, args=(process.stdout, b"[%d] " % rank), daemon=True))
        COPYING[-1].start()
    return process


def _terminate(ranks: list[subprocess.Popen[bytes]]) -> None:
    for rank in ranks:
        rank.terminate()


def _copy(source: IO[bytes], prefix: bytes) -> None:
    """Lines of a rank, with its number; very long ones in pieces."""
    while line := source.readline(CHUNK):
        with WRITING:
            sys.stdout.buffer.write(prefix + line)
            sys.stdout.buffer.flush()


def _wait(ranks: list[subprocess.Popen[bytes]], stop_file: str) -> int:
    """The exit code of all: the first that is neither 0 nor 75 ends the others, and 75 of one is that of all."""
    warned, failed, deadline = 0.0, 0, None
    while running := [rank for rank in ranks if rank.poll() is None]:
        now = time.monotonic()
        if stop_file and now > warned + REPEAT_S and os.path.exists(stop_file):  # noqa: PTH110 - a small program
            warned = now
            for rank in running:
                rank.send_signal(signal.SIGUSR2)
        failed = failed or next((rank.returncode for rank in ranks if rank.returncode not in (None, 0, SAVED)), 0)
        if failed and deadline is None:
            deadline = now + END_WITHIN_S
            _terminate(running)
        elif deadline is not None and now > deadline:
            for rank in running:
                rank.kill()
        with contextlib.suppress(subprocess.TimeoutExpired):
            running[0].wait(0.5)
    for thread in COPYING:
        thread.join(5.0)
    codes = [rank.returncode for rank in ranks]
    code = failed or next((code for code in codes if code not in (0, SAVED)), max(codes))
    return 128 - code if code < 0 else code


def serve(server: socket.socket, path: str) -> None:
    """Join each connection to the loopback interface with one to the socket file, for ever."""
    while True:
        connection, _ = server.accept()
        threading.Thread(target=_join, args=(connection, path), daemon=True).start()


def _join(connection: socket.socket, path: str) -> None:
    """Join a connection with one to the socket file."""
    relay = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    with connection, relay:
        try:
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            relay.connect(path)
        except OSError:
            return
        exchange(connection, relay)


def exchange(one: socket.socket, other: socket.socket) -> None:
    """Hand on what comes from either side to the other one, until both have ended."""
    back = threading.Thread(target=_pump, args=(other, one), daemon=True)
    back.start()
    _pump(one, other)
    back.join()


def _pump(source: socket.socket, target: socket.socket) -> None:
    """Hand on what comes from one side until it ends."""
    try:
        while data := source.recv(CHUNK):
            target.sendall(data)
        target.shutdown(socket.SHUT_WR)
    except OSError:
        # the other side went away: neither direction goes on
        for one in (source, target):
            with contextlib.suppress(OSError):
                one.shutdown(socket.SHUT_RDWR)


if __name__ == "__main__":
    os.umask(0o022)
    sys.exit(main())
