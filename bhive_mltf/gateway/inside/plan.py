"""What the launcher of a node is told, as a file that the sandbox does not see. It holds no secret."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class LaunchPlan:
    """A job as its launchers see it.

    argv : the project's command.
    work : the project's copy, all that it can write; /job inside.
    logs : where the batch step looks for what ranks left behind.
    environment : prepared Python environment, read-only inside.
    read_only : further folders, read-only inside.
    variables : of the project's command.
    tracking_url : the tracking server, as the node reaches it.
    token_file : read for each call, so that it may be renewed.
    """

    argv: tuple[str, ...]
    work: str
    logs: str
    runtime: str
    network: str
    environment: str
    tracking_url: str
    token_file: str
    run_id: str
    experiment_id: str
    read_only: tuple[str, ...] = ()
    variables: dict[str, str] = field(default_factory=dict)

    def to_json(self) -> str:
        """As `read` takes it."""
        return json.dumps(asdict(self), indent=2) + "\n"

    @classmethod
    def read(cls, path: Path) -> LaunchPlan:
        """The plan in a file."""
        content: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        for name in ("argv", "read_only"):
            content[name] = tuple(content[name])
        return cls(**content)
