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

CHUNK = 2**18


def main() -> int:
    """Run the command of the plan named by the only argument; its exit code, 128 + N for signal N."""
    with open(sys.argv[1], encoding="utf-8") as file:  # noqa: PTH123 - a small program
        plan = json.load(file)
    server = socket.create_server(("127.0.0.1", 0), backlog=64)
    threading.Thread(target=_serve, args=(server, plan["socket"]), daemon=True).start()
    port = server.getsockname()[1]
    variables = {**plan["variables"], "MLFLOW_TRACKING_URI": f"http://127.0.0.1:{port}/{plan['secret']}"}
    resource.setrlimit(resource.RLIMIT_NPROC, (plan["processes"], plan["processes"]))
    # the launcher ignores it, and so did this program from its start
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    try:
        process = subprocess.Popen(plan["argv"], env=variables, cwd=plan["work"], stdin=subprocess.DEVNULL)
    except OSError as error:
        sys.stderr.write(f"the command cannot be started: {error.strerror}: {plan['argv'][0]}\n")
        return 127
    signal.signal(signal.SIGTERM, lambda *_: process.terminate())
    while True:
        try:
            code = process.wait(1.0)
        except subprocess.TimeoutExpired:
            continue
        return 128 - code if code < 0 else code


def _serve(server: socket.socket, path: str) -> None:
    while True:
        connection, _ = server.accept()
        threading.Thread(target=_join, args=(connection, path), daemon=True).start()


def _join(connection: socket.socket, path: str) -> None:
    """Hand on what comes from either side to the other one."""
    relay = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    with connection, relay:
        try:
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            relay.connect(path)
        except OSError:
            return
        back = threading.Thread(target=_pump, args=(relay, connection), daemon=True)
        back.start()
        _pump(connection, relay)
        back.join()


def _pump(source: socket.socket, target: socket.socket) -> None:
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
