"""One build: lock what is wanted, install the lock, compile, and give the folder its name.

Nothing of what is installed runs meanwhile: only wheels are taken, which are unpacked, and they are compiled by an
interpreter that does not look at them. What uv does, it does in a sandbox that reaches the package index alone.
"""

from __future__ import annotations

import contextlib
import functools
import os
import platform
import re
import shutil
import subprocess
import sys
import sysconfig
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final
from urllib.parse import unquote, urlsplit

from bhive_mltf.files import atomic
from bhive_mltf.gateway import faults
from bhive_mltf.gateway.environments import bridge
from bhive_mltf.gateway.environments.proxy import Proxy, hosts_of
from bhive_mltf.gateway.environments.store import Store, key_of
from bhive_mltf.gateway.environments.wanted import Wanted
from bhive_mltf.gateway.errors import EnvironmentBuildError
from bhive_mltf.gateway.inside import disk, sandbox, spawn
from bhive_mltf.gateway.settings import Builds

_LOOK_S: Final = 0.05
_MEASURE_S: Final = 2.0
_LONGEST_REASON: Final = 800
_UV: Final = "/run/uv"
_WORK: Final = "/run/work"
_VARIABLES: Final = {
    "HOME": "/tmp",  # noqa: S108 - of the sandbox
    "PATH": "/usr/local/bin:/usr/bin:/bin",
    "LANG": "C.UTF-8",
    "NO_COLOR": "1",
    "UV_NO_CONFIG": "1",
    "UV_NO_PROGRESS": "1",
    "UV_PYTHON_DOWNLOADS": "never",
    "UV_LINK_MODE": "hardlink",
}
# What uv draws around its sentences.
_DRAWN: Final = re.compile(r"^[\s\u2500-\u257f\u25b6\u00d7|`>-]+")
_FIRST_DRAWN: Final = re.compile(r"\s*(?:\u00d7|error:)")


class BuiltElsewhereError(RuntimeError):
    """Another build of the same content is under way: ask again."""


@dataclass
class Builder:
    """Builds into a store.

    log : what uv prints is added to this file.
    stop : ends the build when it is set.
    """

    builds: Builds
    store: Store
    log: Path
    stop: threading.Event = field(default_factory=threading.Event)
    _deadline: float = 0.0

    def build(self, wanted: Wanted, lock_file: Path) -> str:
        """The key of the environment, which is ready then.

        Parameters
        ----------
        lock_file : keeps the lock, once it is made, so that the same is installed when this is done again.

        Raises
        ------
        EnvironmentBuildError : it cannot be built; the message is uv's own where there is one.
        BuiltElsewhereError : somebody else is building it.
        """
        self._deadline = time.monotonic() + 60 * self.builds.minutes
        python = self._python(wanted)
        self.store.make()
        with tempfile.TemporaryDirectory(prefix="mltf-build-") as place, self.store.lock("cache", shared=True) as may:
            if not may:
                raise BuiltElsewhereError("the cache is being removed")
            folder = Path(place)
            if not lock_file.is_file():
                say(self.log, f"locking {len(wanted.requirements)} requirements for Python {python[0]}")
                atomic.write_text(lock_file, self._lock(wanted, python[1], folder))
                faults.point("after_lock")
            lock = lock_file.read_text(encoding="utf-8")
            facts = self._facts(*python)
            key = key_of(lock, **facts)
            if self.store.is_ready(key):
                say(self.log, f"environment {key} is there already")
                return key
            with self.store.lock(key) as mine:
                if not mine:
                    raise BuiltElsewhereError(key)
                # between the look and the lock somebody else may have finished it
                if not self.store.is_ready(key):
                    self._install(key, lock, facts, python[1], folder)
        return key

    def _python(self, wanted: Wanted) -> tuple[str, Path]:
        """The interpreter: its version, and where it is."""
        version = wanted.python or next(iter(self.builds.pythons))
        if version not in self.builds.pythons:
            there = ", ".join(self.builds.pythons)
            raise EnvironmentBuildError(f"the project asks for Python {wanted.asked_python}; there are {there}")
        return version, self.builds.pythons[version]

    def _facts(self, version: str, python: Path) -> dict[str, str]:
        return {
            "python": version,
            "interpreter": str(python),
            "platform": f"{sysconfig.get_platform()} {'-'.join(platform.libc_ver())}",
            "uv": uv_version(uv_program(self.builds)),
            "index": self.builds.index_url,
        }

    def _lock(self, wanted: Wanted, python: Path, folder: Path) -> str:
        """The lock: that of the project, or what uv finds."""
        if wanted.is_locked:
            return "".join(f"{line}\n" for line in wanted.requirements)
        if not wanted.requirements:
            return ""
        for name, lines in (("requirements.in", wanted.requirements), ("constraints.txt", wanted.constraints)):
            (folder / name).write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
        command = [_UV, "pip", "compile", "--quiet", "--generate-hashes", "--no-header", "--no-annotate"]
        command += ["--python", str(python), "--only-binary", ":all:", "--constraints", f"{_WORK}/constraints.txt"]
        command += [*self._index(), "--output-file", f"{_WORK}/locked.txt", f"{_WORK}/requirements.in"]
        self._run(command, python, folder)
        return (folder / "locked.txt").read_text(encoding="utf-8")

    def _install(self, key: str, lock: str, facts: dict[str, str], python: Path, folder: Path) -> None:
        begun, target = time.monotonic(), self.store.begin(key)
        say(self.log, f"building environment {key}")
        (folder / "locked.txt").write_text(lock, encoding="utf-8")
        # its folder is moved at the end
        command = [_UV, "venv", "--quiet", "--relocatable", "--python", str(python), str(target)]
        self._run(command, python, folder)
        command = [_UV, "pip", "install", "--require-hashes", "--no-deps", "--only-binary", ":all:", *self._index()]
        command += ["--python", str(target / "bin" / "python"), "--requirements", f"{_WORK}/locked.txt"]
        if lock:
            self._run(command, python, folder, target)
        # the names in tracebacks are those of its later place; packages may hold files that cannot be compiled
        command = [str(python), "-I", "-S", "-m", "compileall", "-qq", "-j", "4", "-s", str(target)]
        command += ["-p", str(self.store.path(key)), str(target / "lib")]
        self._run(command, python, folder, target, allowed=(0, 1))
        faults.point("in_build")
        size = self.store.finish(key, lock, facts)
        faults.point("after_build")
        say(self.log, f"environment {key} is ready after {time.monotonic() - begun:.1f} s, {size / 1e6:,.1f} MB")

    def _index(self) -> list[str]:
        parts = urlsplit(self.builds.index_url)
        if parts.scheme == "file":
            return ["--no-index", "--find-links", unquote(parts.path)]
        return ["--default-index", self.builds.index_url]

    def _run(
        self,
        command: Sequence[str],
        python: Path,
        folder: Path,
        target: Path | None = None,
        allowed: tuple[int, ...] = (0,),
    ) -> None:
        """Run a command in the sandbox; what it prints goes to the log.

        Raises
        ------
        EnvironmentBuildError : it fails, takes too long, or makes more than an environment may have.
        """
        with contextlib.ExitStack() as stack:
            output = stack.enter_context(self.log.open("ab"))
            ours = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="mltf-")))
            (ours / "run").mkdir()
            sandbox.write_etc(ours)
            if hosts := hosts_of(self.builds.index_url, self.builds.index_hosts):
                proxy = stack.enter_context(Proxy(ours / "run" / "proxy", hosts).running())
                for module in (bridge, spawn):
                    shutil.copy(module.__file__ or "", ours / "run")
                inner = [str(python), "-I", "-S", f"{sandbox.OURS}/bridge.py", f"{sandbox.OURS}/proxy"]
                command = [*inner, *command]
            before = output.seek(0, os.SEEK_END)
            code = self._wait(sandbox.enter(self._options(python, folder, ours), command, output), target)
            reason = self._reason(before, code) if code not in allowed else ""
            if hosts and proxy.refused:
                say(self.log, f"refused, since it is no host of the index: {', '.join(sorted(proxy.refused))}")
            if reason:
                raise EnvironmentBuildError(reason)

    def _options(self, python: Path, folder: Path, ours: Path) -> Iterator[str]:
        yield from sandbox.closed(ours, own_network=True)
        yield from ("--ro-bind", str(ours / "run"), sandbox.OURS)
        yield from ("--ro-bind", str(uv_program(self.builds)), _UV)
        for path in bases_of(python):
            yield from ("--ro-bind", str(path), str(path))
        parts = urlsplit(self.builds.index_url)
        if parts.scheme == "file":
            yield from ("--ro-bind", unquote(parts.path), unquote(parts.path))
        yield from ("--bind", str(folder), _WORK, "--chdir", _WORK)
        # one folder for cache and environment: hard links go through no second mount
        yield from ("--bind", str(self.store.building), str(self.store.building))
        for name, value in {**_VARIABLES, "UV_CACHE_DIR": str(self.store.cache)}.items():
            yield from ("--setenv", name, value)
        if self.builds.certificates is not None:
            yield from ("--ro-bind", str(self.builds.certificates), "/etc/mltf-certificates.pem")
            yield from ("--setenv", "SSL_CERT_FILE", "/etc/mltf-certificates.pem")

    def _wait(self, process: subprocess.Popen[bytes], target: Path | None) -> int:
        next_look = time.monotonic() + _MEASURE_S
        largest = int(self.builds.environment_gb * 1e9)
        try:
            while (code := process.poll()) is None:
                now = time.monotonic()
                if self.stop.wait(_LOOK_S):
                    raise EnvironmentBuildError("the build was cancelled")
                if now > self._deadline:
                    raise EnvironmentBuildError(f"the environment was not built within {self.builds.minutes:g} minutes")
                if target is not None and now > next_look:
                    self._check_size(target, largest)
                    next_look = time.monotonic() + max(_MEASURE_S, 20 * (time.monotonic() - now))
        finally:
            if process.poll() is None:
                process.kill()
            process.wait()
        if target is not None:
            self._check_size(target, largest)
        return code

    def _check_size(self, target: Path, largest: int) -> None:
        found = disk.used((str(target),))
        if found > largest:
            raise EnvironmentBuildError(
                f"the environment has {found / 1e9:.3g} GB and more, and may have {largest / 1e9:.3g} GB:"
                " ask for fewer packages"
            )

    def _reason(self, before: int, code: int) -> str:
        """What uv said since then, in one line."""
        with self.log.open("rb") as file:
            file.seek(before)
            text = file.read(64 * 1024).decode("utf-8", "replace")
        lines = [_DRAWN.sub("", line).strip() for line in text.splitlines()]
        first = next((n for n, line in enumerate(text.splitlines()) if _FIRST_DRAWN.match(line)), 0)
        said = " ".join(line for line in lines[first:] if line).removeprefix("error: ")
        return f"uv: {said[:_LONGEST_REASON]}" if said else f"uv ended with exit code {code}"


def say(log: Path, text: str) -> None:
    """Add a line of the gateway's own to a log."""
    log.parent.mkdir(exist_ok=True)
    with log.open("ab") as file:
        file.write(f"mltf: {text}\n".encode())


def uv_program(builds: Builds) -> Path:
    """The program uv.

    Raises
    ------
    EnvironmentBuildError : there is none.
    """
    beside = Path(sys.executable).with_name("uv")
    found = builds.uv or (beside if beside.is_file() else None) or shutil.which("uv")
    if found is None or not Path(found).is_file():
        raise EnvironmentBuildError("the program uv is not on the host of the worker: ask the operator")
    return Path(found).resolve()


@functools.cache
def uv_version(program: Path) -> str:
    """Version of the program uv."""
    done = subprocess.run([program, "--version"], capture_output=True, text=True, check=True, timeout=60)
    return done.stdout.split()[1]


def bases_of(python: Path) -> list[Path]:
    """The installations that an interpreter needs, outside of /usr, which every sandbox has."""
    found = {path.parent.parent for path in (python, python.resolve())}
    if python.is_symlink():
        found.add(Path(os.path.normpath(python.parent / python.readlink())).parent.parent)
    return sorted(path for path in found if not path.is_relative_to("/usr") and path != Path("/"))
