"""`run.json`: which MLflow run belongs to a training directory."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, fields
from pathlib import Path

from bhive_mltf.errors import TrackingError
from bhive_mltf.files import atomic

FILE_NAME = "run.json"


@dataclass(frozen=True)
class RunRecord:
    """The run of one training, kept beside its other outputs.

    tracking_uri : the store, without user name and password.
    external : the run was given from outside; its status is never touched.
    parent_run_id : set for a training that became the child of a run given from outside.
    pending : what it takes to make the run, while the store has not answered yet (`run_id` is empty then); None once
        it exists. `bhive_mltf.tracking.run_resolver` makes it.
    """

    tracking_uri: str
    experiment_id: str
    run_id: str
    external: bool = False
    parent_run_id: str | None = None
    pending: dict[str, str] | None = None

    def write(self, directory: Path) -> None:
        """Write the record to `directory` as a whole."""
        atomic.write_json(directory / FILE_NAME, asdict(self))

    @classmethod
    def read(cls, directory: Path) -> RunRecord | None:
        """The record in `directory`, None if there is none.

        Raises TrackingError for a file that is no record.
        """
        path = directory / FILE_NAME
        try:
            content = json.loads(path.read_text(encoding="utf-8"))
            return cls(
                **{field.name: content[field.name] for field in fields(cls) if field.name != "pending"},
                pending=content.get("pending"),
            )
        except FileNotFoundError:
            return None
        except (OSError, ValueError, KeyError, TypeError) as error:
            message = f"{path} cannot be read as the record of an MLflow run ({error!r}); remove it to begin a new run"
            raise TrackingError(message) from error
