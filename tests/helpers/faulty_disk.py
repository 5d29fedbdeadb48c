"""A file system in user space that fails when a test tells it to: served by `faulty_disk_server`, used from here."""

import ctypes.util
import importlib.util
import json
import os
import shutil
import subprocess
import sys
import time
from contextlib import contextmanager
from pathlib import Path

REPOSITORY = Path(__file__).parents[2]
READS, WRITES, CHANGES = "read", "write", "change"
# kind of fault: the calls that it strikes
FAULTS = {
    "unreadable": READS,
    "unreadable once": READS,
    "short read": READS,
    "slow read": READS,
    "no space": WRITES,
    "quota": WRITES,
    "unwritable": WRITES,
    "slow write": WRITES,
    "refused change": CHANGES,
}


def why_not():
    """Why such a file system cannot be used here; empty if it can."""
    if importlib.util.find_spec("mfusepy") is None:
        return "mfusepy is not installed"
    if not (ctypes.util.find_library("fuse") or ctypes.util.find_library("fuse3")):
        return "there is no libfuse (Debian: libfuse2)"
    if not os.access("/dev/fuse", os.R_OK | os.W_OK) or shutil.which("umount") is None:
        return "there is no /dev/fuse for this user"
    if os.geteuid() != 0:
        return "mounting takes root"
    return ""


class FaultyDisk:
    """The file system as a test sees it: `folder` is what lies behind `mountpoint`."""

    def __init__(self, folder, mountpoint, mode):
        self.folder, self.mountpoint = Path(folder), Path(mountpoint)
        for path in (self.folder, self.mountpoint):
            path.mkdir(parents=True, exist_ok=True)
        command = [sys.executable, "-m", "tests.helpers.faulty_disk_server", str(folder), str(mountpoint), mode]
        self._process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=REPOSITORY
        )
        deadline = time.monotonic() + 20
        while not os.path.ismount(mountpoint):
            if self._process.poll() is not None or time.monotonic() > deadline:
                raise RuntimeError(f"nothing was mounted (exit code {self._process.poll()})")
            time.sleep(0.01)

    def _ask(self, **order):
        self._process.stdin.write(json.dumps(order) + "\n")
        self._process.stdin.flush()
        return json.loads(self._process.stdout.readline())

    def arm(self, fault, at, seed=0):
        """From now on: the fault strikes the call number `at` (from 0) of those that it can strike."""
        self._ask(fault=fault, at=at, seed=seed)

    def disarm(self):
        """No fault any more; the calls since the last order by kind, and whether the fault struck."""
        return self._ask(fault=None)

    def forget(self):
        """Have what the system keeps of the files read anew."""
        for path in self.mountpoint.rglob("*"):
            if path.is_file():
                handle = os.open(path, os.O_RDONLY)
                os.posix_fadvise(handle, 0, 0, os.POSIX_FADV_DONTNEED)
                os.close(handle)

    def close(self):
        subprocess.run(["umount", "-l", str(self.mountpoint)], check=False)
        self._process.stdin.close()
        try:
            self._process.wait(20)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._process.stdout.close()


@contextmanager
def mounted(folder, mountpoint, mode):
    """A faulty disk that is gone afterwards."""
    disk = FaultyDisk(folder, mountpoint, mode)
    try:
        yield disk
    finally:
        disk.close()
