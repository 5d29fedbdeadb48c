"""weaver-core in its own environment: a process that answers one line of JSON to each line of JSON.

So rounds of ours and of the peer's take turns within one run, and nothing that the peer starts up is timed.
"""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

REPOSITORY = Path(__file__).resolve().parents[1]


def weaver_python() -> Path:
    """The interpreter of the peer's environment: $WEAVER_PYTHON, else that of `make weaver`."""
    path = Path(os.environ.get("WEAVER_PYTHON", REPOSITORY / ".venv-weaver" / "bin" / "python"))
    if not path.exists():
        raise SystemExit(f"no weaver-core: {path} is not there; run `make weaver`, or set WEAVER_PYTHON")
    return path


class Peer:
    """A script of this folder, running in the peer's environment; it is ready when it has written its first line."""

    def __init__(self, script: str, arguments: Sequence[str] = ()) -> None:
        command = [str(weaver_python()), str(Path(__file__).with_name(script)), *arguments]
        # its own packages only
        environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
        self._process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment
        )
        self.about = self._answer()

    @property
    def pid(self) -> int:
        return self._process.pid

    def ask(self, **request: Any) -> dict[str, Any]:
        """Send a request, wait for its answer."""
        assert self._process.stdin is not None
        print(json.dumps(request), file=self._process.stdin, flush=True)
        return self._answer()

    def _answer(self) -> dict[str, Any]:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            raise SystemExit(f"the peer's process ended with code {self._process.wait()}")
        answer: dict[str, Any] = json.loads(line)
        return answer

    def __enter__(self) -> Peer:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Ends with its input."""
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait(timeout=60)
