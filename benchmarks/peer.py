"""weaver-core in its own environment: a process that answers one line of JSON to each line of JSON.

So rounds of ours and of the peer's take turns within one run, and nothing that the peer starts up is timed.
"""

from __future__ import annotations

import ctypes
import json
import os
import signal
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self

REPOSITORY = Path(__file__).resolve().parents[1]


def weaver_python() -> Path:
    """The interpreter of the peer's environment: $WEAVER_PYTHON, else that of `make weaver`."""
    path = Path(os.environ.get("WEAVER_PYTHON", REPOSITORY / ".venv-weaver" / "bin" / "python"))
    if not path.exists():
        raise SystemExit(f"no weaver-core: {path} is not there; run `make weaver`, or set WEAVER_PYTHON")
    return path


def _end_with_parent() -> None:
    """A benchmark that is killed leaves no process behind."""
    ctypes.CDLL(None).prctl(1, signal.SIGKILL, 0, 0, 0)


class Partner:
    """A script of this folder in a process of its own; it is ready when it has written its first line (`about`)."""

    def __init__(self, command: Sequence[str], environment: Mapping[str, str]) -> None:
        self._process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=environment,
            preexec_fn=_end_with_parent,  # noqa: PLW1509 - one thread starts them
        )
        self._about: dict[str, Any] | None = None

    @property
    def about(self) -> dict[str, Any]:
        """What it says of itself, once it is ready."""
        if self._about is None:
            self._about = self.answer()
        return self._about

    @property
    def pid(self) -> int:
        return self._process.pid

    def ask(self, **request: Any) -> dict[str, Any]:
        """Send a request, wait for its answer."""
        self.send(**request)
        return self.answer()

    def send(self, **request: Any) -> None:
        """Send a request; the answer is to be fetched by `answer`."""
        assert self._process.stdin is not None
        print(json.dumps(request), file=self._process.stdin, flush=True)

    def answer(self) -> dict[str, Any]:
        """Wait for an answer."""
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            raise SystemExit(f"a process of the benchmark ended with code {self._process.wait()}")
        answer: dict[str, Any] = json.loads(line)
        return answer

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Ends with its input."""
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait(timeout=60)


class Peer(Partner):
    """A script of this folder, running in the peer's environment."""

    def __init__(
        self, script: str, arguments: Sequence[str] = (), environment: Mapping[str, str] | None = None
    ) -> None:
        command = [str(weaver_python()), str(Path(__file__).with_name(script)), *arguments]
        # its own packages only
        inherited = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
        super().__init__(command, {**inherited, **(environment or {})})
        if environment is None:
            self.about  # noqa: B018 - a single one is waited for
