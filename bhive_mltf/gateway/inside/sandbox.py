"""The sandbox of a job's node: what of the machine the project sees, by bubblewrap."""

from __future__ import annotations

import ctypes
import os
import platform
import shutil
import subprocess
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import IO, Final

from bhive_mltf.gateway.inside.plan import LaunchPlan

JOB: Final = "/job"
OURS: Final = "/run/mltf"
USER_ID: Final = "1000"
_TMP_BYTES: Final = 4 * 2**30
_SHARED_MEMORY_BYTES: Final = 8 * 2**30
# Of /etc only what finds libraries and certificates; the rest is written anew.
_ETC: Final = ("ld.so.cache", "ld.so.conf", "ld.so.conf.d", "alternatives", "ssl/certs", "ca-certificates", "pki")
# System call `keyctl` and its first operation: join a session keyring of no name.
_KEYCTL: Final = {"x86_64": 250, "aarch64": 219, "riscv64": 219, "ppc64le": 271, "s390x": 280}
_JOIN_SESSION_KEYRING: Final = 1
# What in /proc is of the whole machine: for root, even without any capability, it could be written.
_OF_THE_KERNEL: Final = ("sys", "sysrq-trigger", "irq", "bus", "fs", "acpi", "scsi", "driver")
_TEXTS: Final = {
    "passwd": f"job:x:{USER_ID}:{USER_ID}::{JOB}:/bin/sh\nnobody:x:65534:65534::/nonexistent:/usr/sbin/nologin\n",
    "group": f"job:x:{USER_ID}:\nnogroup:x:65534:\n",
    "hosts": "127.0.0.1 localhost job\n::1 localhost\n",
    "nsswitch.conf": "passwd: files\ngroup: files\nhosts: files dns\n",
}


def program() -> str:
    """The program bubblewrap; FileNotFoundError where there is none."""
    found = shutil.which("bwrap")
    if found is None:
        raise FileNotFoundError("there is no bwrap on this node: install bubblewrap")
    return found


def start(plan: LaunchPlan, folder: Path, arguments: Sequence[str]) -> subprocess.Popen[bytes]:
    """Start `arguments` in the sandbox.

    Environment and command line of bubblewrap are seen inside as those of process 1: the one is empty, and of the other
    only the end is there, since the options come by a file.

    Parameters
    ----------
    folder : the launcher's own folder on this node, whose `run` becomes /run/mltf.

    Raises
    ------
    OSError : there is no bubblewrap, or it cannot be started.
    """
    return enter(_options(plan, folder), arguments)


def enter(options: Iterable[str], arguments: Sequence[str], output: IO[bytes] | None = None) -> subprocess.Popen[bytes]:
    """Start `arguments` with these options of bubblewrap; what they print goes to `output`, if given.

    Raises
    ------
    OSError : as for `start`.
    """
    file = os.memfd_create("options")
    try:
        os.write(file, b"".join(os.fsencode(one) + b"\0" for one in options))
        os.lseek(file, 0, os.SEEK_SET)
        command = [program(), "--args", str(file), "--", *arguments]
        return subprocess.Popen(
            command, env={}, stdin=subprocess.DEVNULL, stdout=output, stderr=output, pass_fds=(file,)
        )
    finally:
        os.close(file)


def leave_keyring() -> None:
    """Give this process, and all that it starts, a session keyring of its own.

    The one that it has inherited may hold credentials of the service, such as a Kerberos ticket, and no namespace
    hides it. Where the kernel refuses, or has no keyrings, the sandbox cannot read them either.
    """
    number = _KEYCTL.get(platform.machine())
    if number is not None:
        ctypes.CDLL(None).syscall(number, _JOIN_SESSION_KEYRING, None)


def write_etc(folder: Path) -> None:
    """Write the files that stand in place of the node's own in /etc."""
    etc = folder / "etc"
    etc.mkdir()
    for name, text in _TEXTS.items():
        (etc / name).write_text(text, encoding="ascii")


def closed(folder: Path, *, own_network: bool) -> Iterator[str]:
    """Options of a sandbox with the programs of this machine and nothing else; `folder` as `write_etc` left it."""
    yield from ("--unshare-user", "--unshare-pid", "--unshare-ipc", "--unshare-uts", "--unshare-cgroup")
    if own_network:
        yield "--unshare-net"
    yield from ("--disable-userns", "--die-with-parent", "--new-session", "--cap-drop", "ALL")
    yield from ("--uid", USER_ID, "--gid", USER_ID, "--hostname", "job", "--clearenv")
    yield from ("--ro-bind", "/usr", "/usr")
    for name in ("bin", "sbin", "lib", "lib32", "lib64", "libx32"):
        path = Path("/", name)
        if path.is_symlink():
            yield from ("--symlink", str(path.readlink()), str(path))
        elif path.is_dir():
            yield from ("--ro-bind", str(path), str(path))
    yield from ("--dev", "/dev")
    yield from ("--size", str(_SHARED_MEMORY_BYTES), "--tmpfs", "/dev/shm")  # noqa: S108 - of the sandbox
    yield from ("--size", str(_TMP_BYTES), "--tmpfs", "/tmp")  # noqa: S108 - of the sandbox
    for name in _ETC:
        yield from ("--ro-bind-try", f"/etc/{name}", f"/etc/{name}")
    for name in _TEXTS:
        yield from ("--ro-bind", str(folder / "etc" / name), f"/etc/{name}")


def _options(plan: LaunchPlan, folder: Path) -> Iterator[str]:
    yield from closed(folder, own_network=plan.network == "own")
    yield from ("--proc", "/proc")
    for name in _OF_THE_KERNEL:
        yield from ("--ro-bind-try", f"/proc/{name}", f"/proc/{name}")
    if plan.network == "shared":
        yield from ("--ro-bind-try", "/etc/resolv.conf", "/etc/resolv.conf")
    for place in (plan.environment, *plan.read_only):
        yield from ("--ro-bind", place, place)
    yield from ("--ro-bind", str(folder / "run"), OURS)
    yield from ("--bind", plan.work, JOB, "--chdir", JOB)
