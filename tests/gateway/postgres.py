"""A PostgreSQL server of its own in a temporary folder, run by an ordinary user."""

import os
import pwd
import shutil
import subprocess
import tempfile
from pathlib import Path

from tests.gateway import needs
from tests.helpers.ports import free_port
from tests.helpers.waiting import wait_for


def _programs():
    """The folder with initdb and postgres; Debian keeps them off PATH."""
    found = sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb"), key=lambda p: int(p.parts[-3]))
    place = shutil.which("initdb") or (found[-1] if found else None)
    if place is None:
        needs.missing("needs the program initdb: apt-get install postgresql")
    return Path(place).parent


class Postgres:
    """The server; `url` names one of its databases."""

    def __init__(self):
        self.bin = _programs()
        self.folder = Path(tempfile.mkdtemp(prefix="mltf-pg-", dir="/tmp"))
        # the server refuses to run as root
        name = "postgres" if os.getuid() == 0 else pwd.getpwuid(os.getuid()).pw_name
        one = pwd.getpwnam(name)
        self.user = {"user": one.pw_uid, "group": one.pw_gid, "extra_groups": []} if os.getuid() == 0 else {}
        os.chown(self.folder, one.pw_uid, one.pw_gid)
        self.folder.chmod(0o755)
        self.port = free_port()
        self.environment = {
            "PATH": f"{self.bin}{os.pathsep}{os.environ['PATH']}",
            "PGHOST": "127.0.0.1",
            "PGPORT": str(self.port),
            "PGUSER": "postgres",
        }
        data = self.folder / "data"
        self._do("initdb", "--no-sync", "--auth=trust", "--username=postgres", "--encoding=UTF8", "--pgdata", data)
        self.process = None
        self.number = 0
        self.start()

    def start(self):
        """Start the server, also after it was killed: what is left of it leaves the shared memory a moment later."""
        options = {"fsync": "off", "listen_addresses": "127.0.0.1", "unix_socket_directories": self.folder}
        command = [str(self.bin / "postgres"), "-D", str(self.folder / "data"), "-p", str(self.port)]
        command += [word for key, value in options.items() for word in ("-c", f"{key}={value}")]

        def is_ready():
            if self.process is None or self.process.poll() is not None:
                with (self.folder / "server.log").open("ab") as log:
                    self.process = subprocess.Popen(command, cwd=self.folder, stdout=log, stderr=log, **self.user)
            return self._run("pg_isready", "--quiet").returncode == 0

        wait_for(is_ready, 60, "the server")

    def kill(self):
        """SIGKILL to the process that all others hang on, as a crash."""
        self.process.kill()
        self.process.wait(30)

    def new(self):
        """The address of a new, empty database."""
        self.number += 1
        self.run("createdb", f"test{self.number}")
        return self.url(f"test{self.number}")

    def url(self, database, user="postgres"):
        return f"postgresql+psycopg://{user}@127.0.0.1:{self.port}/{database}"

    def run(self, *command, **options):
        """Run a program as a client of the server; its output."""
        done = self._run(*command, **options)
        assert done.returncode == 0, done.stderr
        return done.stdout

    def query(self, database, sql, user="postgres"):
        return self.run("psql", "-qtA", "--no-psqlrc", "-U", user, "-d", database, "-c", sql).strip()

    def _run(self, *command, environment=None, **options):
        variables = {**self.environment, **(environment or {})}
        command = [str(word) for word in command]
        return subprocess.run(
            command, env=variables, capture_output=True, text=True, check=False, timeout=120, **options
        )

    def _do(self, *command):
        done = self._run(*command, cwd=self.folder, **self.user)
        assert done.returncode == 0, done.stderr

    def close(self):
        self.process.terminate()
        self.process.wait(30)
        shutil.rmtree(self.folder, ignore_errors=True)
