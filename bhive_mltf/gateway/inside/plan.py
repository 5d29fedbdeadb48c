"""What the launcher of a node is told, as a file that the sandbox does not see. It holds no secret."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Final

# Beside the token, one for each node: the name of the job whose launcher has started the project there.
BEGUN: Final = "begun_"


@dataclass(frozen=True)
class LaunchPlan:
    """A job as its launchers see it.

    argv : the project's command.
    work : the project's copy, all that it can write; /job inside.
    logs : where the batch step looks for what ranks left behind.
    environment : prepared Python environment, read-only inside.
    read_only : further folders, read-only inside.
    variables : of the project's command.
    ranks_per_node : how often the command is started on each node.
    resume : the command is warned before the time limit, and exit code 75 then says that it goes on later.
    tracking_url : the tracking server, as the node reaches it.
    token_file : read for each call, so that it may be renewed.
    disk_bytes : of all that the job may have on disk, its log included; 0: no limit.
    processes : and threads of the job on a node; the kernel counts them per job, except for root.
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
    ranks_per_node: int = 1
    resume: bool = False
    variables: dict[str, str] = field(default_factory=dict)
    disk_bytes: int = 0
    processes: int = 16_384

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
