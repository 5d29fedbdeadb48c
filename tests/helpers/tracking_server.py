"""A real `mlflow server` on this machine, and a port in front of it that dies, stops and is slow."""

import contextlib
import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.request
from contextlib import suppress
from pathlib import Path

from bhive_mltf.files import atomic
from bhive_mltf.tracking import connection
from tests.helpers import sharing
from tests.helpers.ports import free_port
from tests.helpers.waiting import wait_for

SERVERS = ("alive", "dead", "stopped", "slow")


def make_store(path):
    """A SQLite store without runs: making its tables takes two seconds, copying it none."""
    connection.load()
    with connection.quiet_with_warnings():
        connection.connect(f"sqlite:///{path}")


def empty_store(tmp_path_factory):
    """The same, one for all workers of a run, to be copied."""
    folder = sharing.made_once(tmp_path_factory, "store", lambda folder: make_store(folder / "mlflow.db"))
    return folder / "mlflow.db"


@contextlib.contextmanager
def running(folder, store, port=None):
    """The address of a server on a copy of a store."""
    shutil.copy(store, folder / "mlflow.db")
    port = port or free_port()
    command = [Path(sys.executable).with_name("mlflow"), "server", "--host", "127.0.0.1", "--port", str(port)]
    command += ["--workers", "1", "--backend-store-uri", f"sqlite:///{folder}/mlflow.db"]
    command += ["--artifacts-destination", str(folder / "artifacts")]
    environment = {**os.environ, "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false", "MLFLOW_DISABLE_TELEMETRY": "true"}
    with (folder / "log").open("w") as log:
        process = subprocess.Popen(command, cwd=folder, env=environment, stdout=log, stderr=log, start_new_session=True)
    try:
        until = time.monotonic() + 120
        while True:
            with suppress(OSError), urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=5):
                break
            alive = process.poll() is None and time.monotonic() < until
            assert alive, (folder / "log").read_text()
            time.sleep(0.1)
        yield f"http://127.0.0.1:{port}"
    finally:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def of_the_run(tmp_path_factory):
    """The address of a server that all workers of a run share, and that ends with the run."""
    store = empty_store(tmp_path_factory)

    def make(folder):
        command = ["setsid", "--fork", sys.executable, "-m", __name__, folder, store]
        command += [str(free_port()), str(sharing.runner())]
        with (folder / "log_of_the_start").open("w") as log:
            subprocess.run(command, cwd=Path(__file__).parents[2], stdout=log, stderr=log, check=True)
        wait_for((folder / "address").exists, 120, "the server")

    return (sharing.made_once(tmp_path_factory, "server", make) / "address").read_text()


def main(folder, store, port, runner):
    """A server for as long as the process `runner` lives."""
    with running(Path(folder), store, port) as address:
        atomic.write_text(Path(folder, "address"), address)
        while Path("/proc", runner).exists():
            time.sleep(1.0)


class Relay:
    """A port in front of a server that can be shut and opened again: a server that dies and comes back.

    holds : keep what comes, answer nothing. delay : seconds, of each piece that goes through.
    """

    def __init__(self, address):
        self.holds, self.delay = False, 0.0
        self.target = address.rpartition(":")[2]
        self.port = free_port()
        self.connections = []
        self.listener = None
        self.open()

    @property
    def address(self):
        return f"http://127.0.0.1:{self.port}"

    def open(self):
        self.listener = socket.create_server(("127.0.0.1", self.port))
        threading.Thread(target=self._accept, args=(self.listener,), daemon=True).start()

    def _accept(self, listener):
        with suppress(OSError):
            while True:
                near, _ = listener.accept()
                far = socket.create_connection(("127.0.0.1", int(self.target)))
                self.connections += [near, far]
                for pair in ((near, far), (far, near)):
                    threading.Thread(target=self._copy, args=pair, daemon=True).start()

    def become(self, what):
        """A server that is alive, dead, stopped (it takes requests and never answers) or slow."""
        self.holds, self.delay = what == "stopped", 0.1 if what == "slow" else 0.0
        if what == "dead":
            self.shut()
        elif self.listener is None:
            self.open()

    def _copy(self, source, destination):
        with suppress(OSError):
            while data := source.recv(65536):
                time.sleep(self.delay)
                while self.holds:
                    time.sleep(0.05)
                destination.sendall(data)
            destination.shutdown(socket.SHUT_WR)

    def shut(self):
        self.holds = False
        if self.listener is None:
            return
        with suppress(OSError):
            self.listener.shutdown(socket.SHUT_RDWR)
        self.listener.close()
        for connected in self.connections:
            with suppress(OSError):
                connected.shutdown(socket.SHUT_RDWR)
            connected.close()
        self.connections = []
        self.listener = None


if __name__ == "__main__":
    main(*sys.argv[1:])
