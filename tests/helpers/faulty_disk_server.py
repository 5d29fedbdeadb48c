"""The process behind `faulty_disk`: `python -m tests.helpers.faulty_disk_server FOLDER MOUNTPOINT MODE` shows FOLDER.

MODE is `cached`, as most network file systems are, or `direct`: no shared mappings, nothing cached between calls. Each
line on the input is an order, answered by the calls since the last one and the file that was struck.
"""

import errno
import json
import os
import random
import subprocess
import sys
import threading
import time
from pathlib import Path

import mfusepy as fuse

from tests.helpers.faulty_disk import CHANGES, FAULTS, READS, WRITES

SLOW_S = 0.2
_REFUSALS = {"no space": errno.ENOSPC, "quota": errno.EDQUOT}


class Orders:
    """Which call fails, and the calls so far."""

    def __init__(self, mountpoint):
        self.mountpoint = mountpoint
        self.fault, self.at, self.seed = None, -1, 0
        self.calls, self.struck = {}, None
        threading.Thread(target=self._listen, daemon=True).start()

    def _listen(self):
        for line in sys.stdin:
            found = {"calls": self.calls, "struck": self.struck}
            order = json.loads(line)
            self.fault, self.at, self.seed = order["fault"], order.get("at", -1), order.get("seed", 0)
            self.calls, self.struck = {}, None
            sys.stdout.write(json.dumps(found) + "\n")
            sys.stdout.flush()
        # who gives the orders has ended, perhaps by a signal: nobody else would take the disk away
        subprocess.run(["umount", "-l", self.mountpoint], check=False, stderr=subprocess.DEVNULL)
        os._exit(0)

    def call(self, kind, path):
        """Count a call; the fault that strikes it, None for most."""
        number = self.calls.get(kind, 0)
        self.calls[kind] = number + 1
        fault = self.fault
        if fault is None or FAULTS[fault] != kind or number < self.at:
            return None
        if self.struck is None:
            self.struck = path
            return fault
        # a full disk stays full and a bad file bad, a slow server is slow for a while
        lasts = fault in ("no space", "quota", "unwritable") or (fault == "unreadable" and path == self.struck)
        return fault if lasts or (fault.startswith("slow") and number < self.at + 3) else None


def fail(number):
    raise fuse.FuseOSError(number)


def attempt(function, *arguments):
    try:
        return function(*arguments)
    except OSError as error:
        return fail(error.errno)


def fields(found, prefix, names):
    return {f"{prefix}_{name}": getattr(found, f"{prefix}_{name}") for name in names.split()}


class Disk(fuse.Operations):
    """Calls go to the folder behind, unless a fault strikes them."""

    use_ns = True

    def __init__(self, folder, orders):
        self.folder, self.orders = folder, orders

    def place(self, path):
        return self.folder + path

    def change(self, path):
        if self.orders.call(CHANGES, path):
            fail(errno.EIO)

    def getattr(self, path, fh=None):
        found = attempt(os.lstat, self.place(path))
        times = {f"st_{name}": getattr(found, f"st_{name}_ns") for name in ("atime", "ctime", "mtime")}
        return {**fields(found, "st", "gid mode nlink size uid"), **times}

    def readdir(self, path, fh):
        return [".", "..", *(found.name for found in Path(self.place(path)).iterdir())]

    def statfs(self, path):
        names = "bavail bfree blocks bsize favail ffree files flag frsize namemax"
        return fields(os.statvfs(self.folder), "f", names)

    def open(self, path, flags):
        return attempt(os.open, self.place(path), flags & ~os.O_APPEND)

    def create(self, path, mode, fi=None):
        fault = self.orders.call(WRITES, path)
        if fault in _REFUSALS:
            fail(_REFUSALS[fault])
        return attempt(os.open, self.place(path), os.O_RDWR | os.O_CREAT | os.O_TRUNC, mode)

    def read(self, path, size, offset, fh):
        fault = self.orders.call(READS, path)
        if fault in ("unreadable", "unreadable once"):
            fail(errno.EIO)
        if fault == "slow read":
            time.sleep(SLOW_S)
        found = os.pread(fh, size, offset)
        if fault == "short read":
            return found[: random.Random(self.orders.seed).randrange(max(1, len(found)))]
        return found

    def write(self, path, data, offset, fh):
        fault = self.orders.call(WRITES, path)
        if fault == "slow write":
            time.sleep(SLOW_S)
        elif fault:
            fail(_REFUSALS.get(fault, errno.EIO))
        return os.pwrite(fh, data, offset)

    def truncate(self, path, length, fh=None):
        return attempt(os.truncate, self.place(path), length)

    def fsync(self, path, datasync, fh):
        self.change(path)
        return 0

    def flush(self, path, fh):
        return 0

    def release(self, path, fh):
        return os.close(fh)

    def rename(self, old, new):
        self.change(new)
        return attempt(os.rename, self.place(old), self.place(new))

    def link(self, target, source):
        return attempt(os.link, self.place(source), self.place(target))

    def unlink(self, path):
        return attempt(os.unlink, self.place(path))

    def mkdir(self, path, mode):
        self.change(path)
        return attempt(os.mkdir, self.place(path), mode)

    def rmdir(self, path):
        return attempt(os.rmdir, self.place(path))

    def chmod(self, path, mode):
        return attempt(os.chmod, self.place(path), mode)

    def utimens(self, path, times=None):
        return attempt(lambda: os.utime(self.place(path), ns=times))


def main(folder, mountpoint, mode):
    options = {"direct_io": True} if mode == "direct" else {"auto_cache": True}
    if fuse.fuse_version_major == 2:
        options["big_writes"] = True  # later versions have no others
    # the tests clear the folder behind files that are still open: libfuse would look for these to hide them
    options["hard_remove"] = True
    disk = Disk(folder, Orders(mountpoint))
    fuse.FUSE(disk, mountpoint, foreground=True, nothreads=True, attr_timeout=0, entry_timeout=0, **options)


if __name__ == "__main__":
    main(*sys.argv[1:])
