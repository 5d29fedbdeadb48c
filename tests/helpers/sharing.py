"""What all workers of one run of pytest share."""

import fcntl
import os
import shutil


def runner():
    """Id of the process that the run is: the one that started the workers, where there are some."""
    return os.getppid() if "PYTEST_XDIST_WORKER" in os.environ else os.getpid()


def made_once(tmp_path_factory, name, make):
    """A folder that `make(folder)` fills, called by the first worker that asks for it; the others wait."""
    base = tmp_path_factory.getbasetemp()
    folder = (base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / f"shared_{name}"
    done = folder.with_suffix(".done")
    with folder.with_suffix(".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not done.exists():
            shutil.rmtree(folder, ignore_errors=True)
            folder.mkdir()
            make(folder)
            done.touch()
    return folder
