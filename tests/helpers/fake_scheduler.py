"""A scheduler of small scripts: programs in a folder on PATH, beside a file with the jobs and with what shall fail."""

import contextlib
import fcntl
import json
import sys
from pathlib import Path

PROGRAMS = ("sbatch", "squeue", "sacct", "scancel", "scontrol")


class FakeScheduler:
    """The test's side: look at jobs, change them, let programs fail."""

    def __init__(self, folder):
        self.folder = folder

    def state(self):
        with self._locked():
            return self._read()

    def _read(self):
        return json.loads(self.path.read_text())

    @contextlib.contextmanager
    def _locked(self):
        """Programs write while the test looks."""
        with (self.folder / "lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            yield

    @contextlib.contextmanager
    def _changed(self):
        with self._locked():
            state = self._read()
            yield state
            self.path.write_text(json.dumps(state))

    @property
    def path(self):
        return self.folder / "state.json"

    def install(self):
        self.folder.mkdir()
        self.path.write_text(json.dumps({"jobs": {}, "calls": [], "fails": {}, "next": 100}))
        # straight to the interpreter, without site-packages: quick to start
        text = f"#!{Path(sys.executable).resolve()} -SEB\n{Path(__file__).with_name('fake_programs.py').read_text()}"
        for name in PROGRAMS:
            (self.folder / name).write_text(text)
            (self.folder / name).chmod(0o755)
        return self

    def calls(self, name):
        return [call for call in self.state()["calls"] if call[0] == name]

    @property
    def jobs(self):
        return self.state()["jobs"]

    def change(self, job_id, **values):
        with self._changed() as state:
            state["jobs"][job_id].update(values)

    def forget(self, job_id):
        with self._changed() as state:
            del state["jobs"][job_id]

    def fail(self, name, words, code=1):
        """Let a program fail with these words; empty words let it work again."""
        with self._changed() as state:
            state["fails"][name] = [words, code] if words else None
