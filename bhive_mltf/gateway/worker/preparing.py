"""Environments of submissions: builds in threads of the worker, so that they hold up nobody else's job.

A build ends with the worker that began it, and its lock is kept: the next worker installs the same again. The folder of
an environment is the only record of it, so there is nothing that could differ from what is on disk.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Set as AbstractSet
from pathlib import Path
from typing import Final

from bhive_mltf.gateway.environments import wanted
from bhive_mltf.gateway.environments.builder import Builder, BuiltElsewhereError, say
from bhive_mltf.gateway.environments.store import LOCK_NAME, Store
from bhive_mltf.gateway.errors import EnvironmentBuildError, GatewayError
from bhive_mltf.gateway.settings import Builds, Settings
from bhive_mltf.gateway.store.tables import Submission
from bhive_mltf.gateway.worker import job_folder

logger = logging.getLogger(__name__)
_WORDS_OF_PROFILE: Final = ("", wanted.PREPARED)


class _Running(threading.Thread):
    """One build: its key at the end, or its error, or neither when it is to be asked for again."""

    def __init__(self, builder: Builder, work: Path, name: str, lock_file: Path, owner: str) -> None:
        # a daemon: a worker that ends does not wait for it, and the sandbox ends with the worker
        super().__init__(name=f"build {name}", daemon=True)
        self.owner, self.builder, self._work, self._file, self._lock_file = owner, builder, work, name, lock_file
        self.key, self.error, self.is_done = "", "", False

    def run(self) -> None:
        try:
            self._build()
        finally:
            self.is_done = True
        if not self.key and not self.error:
            return
        try:
            self.builder.store.sweep(int(self.builder.builds.cache_gb * 1e9))
        except OSError as error:
            logger.warning("what builds have left cannot be removed: %s", error)

    def _build(self) -> None:
        try:
            asked = wanted.read_wanted(self._file, self._read)
            self.key = self.builder.build(asked, self._lock_file)
        except BuiltElsewhereError:
            logger.debug("the build of %s is under way elsewhere", self._file)
        except GatewayError as error:
            self.error = str(error)
        except OSError as error:
            self.error = f"the environment cannot be built: {error.strerror or error}"
        except Exception as error:
            logger.exception("a build has failed")
            self.error = f"the environment cannot be built: {type(error).__name__}: ask the operator"

    def _read(self, name: str) -> str | None:
        path = self._work / name
        if not path.is_file():
            return None
        with path.open("rb") as file:
            data = file.read(wanted.LARGEST_BYTES + 1)
        if len(data) > wanted.LARGEST_BYTES:
            raise EnvironmentBuildError(f"{name} is larger than {wanted.LARGEST_BYTES:,} bytes")
        return data.decode("utf-8", "replace")


class Environments:
    """What one worker builds."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self.store = Store(settings.environments)
        self._running: dict[str, _Running] = {}

    def prepare(self, submission: Submission) -> str | None:
        """The key of the environment that was built, empty for a prepared one, None while it is being built.

        Raises
        ------
        EnvironmentBuildError : it cannot be built, or a prepared one is not there.
        ProfileError : the profile has no environment of that name any more.
        """
        if submission.environment.partition(":")[0] in _WORDS_OF_PROFILE:
            profile = self._settings.profiles[submission.profile]
            if not (job_folder.environment_of(self._settings, submission, profile) / "bin").is_dir():
                what = f"the environment of profile {submission.profile} is not there: ask the operator"
                raise EnvironmentBuildError(what)
            return ""
        builds = self._settings.builds
        if builds is None:
            raise EnvironmentBuildError("this gateway builds no environments any more: use 'profile'")
        running = self._running.get(submission.id)
        if running is None:
            self._start(submission, builds)
            return None
        if not running.is_done:
            return None
        del self._running[submission.id]
        if running.error:
            say(job_folder.log_of(self._settings, submission), running.error)
            raise EnvironmentBuildError(running.error)
        # without a key it was being built for somebody else
        return running.key if running.key and self.store.is_ready(running.key) else None

    def cancel(self, submission: Submission) -> None:
        """End the build of a submission."""
        if (running := self._running.pop(submission.id, None)) is not None:
            running.builder.stop.set()

    def note_end(self, submission: Submission) -> None:
        """Note that a job was in an environment until now."""
        if submission.env_key and self.store.is_ready(submission.env_key):
            self.store.use(submission.env_key)

    def make_room(self, key: str, in_use: AbstractSet[str]) -> None:
        """Note that an environment is used now, and take away what is unused and too much, the longest unused first.

        Parameters
        ----------
        in_use : keys of other submissions that are not over.

        Raises
        ------
        EnvironmentBuildError : what is used by others leaves no room for this one.
        """
        builds = self._settings.builds
        self.store.use(key)
        largest = builds.all_gb * 1e9 if builds is not None else float("inf")
        entries = self.store.entries()
        total = sum(one.bytes for one in entries)
        for one in entries:
            if total > largest and one.key != key and one.key not in in_use:
                self.store.set_aside(one.key)
                total -= one.bytes
        if total > largest:
            if key not in in_use:
                self.store.set_aside(key)
            raise EnvironmentBuildError(
                f"environments of jobs that are not over have {total / 1e9:.3g} GB with this one, and may have"
                f" {largest / 1e9:.3g} GB: wait for one of them, or ask for fewer packages"
            )

    def _start(self, submission: Submission, builds: Builds) -> None:
        alive = [one.owner for one in self._running.values() if one.is_alive()]
        # nobody keeps all others waiting
        if len(alive) >= builds.at_once or alive.count(submission.owner) >= max(1, builds.at_once - 1):
            return
        folder = self._settings.job_folder(submission.id)
        private = folder / job_folder.PRIVATE
        private.mkdir(exist_ok=True, mode=0o700)
        builder = Builder(builds, self.store, job_folder.log_of(self._settings, submission))
        builder.log.parent.mkdir(exist_ok=True)
        work, lock_file = folder / job_folder.WORK, private / LOCK_NAME
        made = _Running(builder, work, submission.environment, lock_file, submission.owner)
        self._running[submission.id] = made
        made.start()
