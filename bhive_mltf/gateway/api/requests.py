"""What a submission asks for, checked against the profile, the project and the caller's limits."""

from __future__ import annotations

import hashlib
import json
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field

from bhive_mltf.errors import nearest
from bhive_mltf.gateway.api.problems import Problem
from bhive_mltf.gateway.api.services import Person, Services
from bhive_mltf.gateway.errors import ProjectError
from bhive_mltf.gateway.projects import mlproject
from bhive_mltf.gateway.settings import JobProfile
from bhive_mltf.gateway.store import queries
from bhive_mltf.gateway.store.tables import Project, Submission

_Name = Annotated[str, Field(max_length=100, pattern=r"^[^\x00-\x1f\x7f]*$")]


class SubmissionRequest(BaseModel):
    """The body of a submission.

    ranks_per_node : how often the command is started on each node.
    resume : a promise that the command goes on from its checkpoints; it is started again after a time limit.
    environment : a file of the project, `profile`, `profile:NAME`, or empty, see `environments.choose`.
    hours : time limit of each start; None takes the profile's longest.
    experiment : below the caller's own name; empty takes the project's name.
    label : for finding several submissions together.
    """

    model_config = ConfigDict(extra="forbid")

    project: str = Field(pattern=r"^[0-9a-f]{64}$")
    entry_point: _Name = "main"
    parameters: dict[str, str] = Field(default_factory=dict, max_length=200)
    profile: _Name
    environment: Annotated[str, Field(max_length=240, pattern=r"^[^\x00-\x1f\x7f\\]*$")] = ""
    nodes: int = Field(default=1, ge=1, le=1024)
    ranks_per_node: int = Field(default=1, ge=1, le=1024)
    resume: bool = False
    hours: float | None = Field(default=None, gt=0, le=10_000)
    experiment: Annotated[str, Field(max_length=100, pattern=r"^[\w .+-]*$")] = ""
    name: _Name = ""
    label: _Name = ""
    tags: dict[_Name, Annotated[str, Field(max_length=5000)]] = Field(default_factory=dict, max_length=50)

    def digest(self) -> str:
        """A hash of the whole request."""
        # a request that was made before there was a choice of environments stays the same one
        left_out = set() if self.environment else {"environment"}
        text = json.dumps(self.model_dump(mode="json", exclude=left_out), sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()


def profile_of(request: SubmissionRequest, person: Person, parts: Services) -> JobProfile:
    """The job profile that is asked for; Problem 403 when it is not the caller's, 422 when it gives less."""
    allowed = person.rights.profiles
    if request.profile not in allowed:
        names = ", ".join(nearest(request.profile, allowed)) or "none"
        raise Problem(403, "profile", f"you may not use the profile {request.profile!r}; you may use: {names}")
    profile = parts.settings.profiles[request.profile]
    if request.hours is not None and request.hours > profile.max_hours:
        _refuse("hours", f"{request.hours:g} is more than the {profile.max_hours:g} of profile {request.profile}")
    if request.nodes > profile.max_nodes:
        _refuse("nodes", f"{request.nodes} is more than the {profile.max_nodes} of profile {request.profile}")
    if request.ranks_per_node > profile.max_ranks:
        text = f"{request.ranks_per_node} is more than the {profile.max_ranks} of profile {request.profile}"
        _refuse("ranks_per_node", text)
    return profile


def argv_of(request: SubmissionRequest, project: Project) -> list[str]:
    """What will run; Problem 422 when project and parameters do not fit."""
    try:
        return mlproject.choose(project.entry_points, request.entry_point).argv(request.parameters)
    except ProjectError as error:
        raise Problem(422, "project", str(error), [{"pointer": "/parameters", "message": str(error)}]) from None


def check_quota(jobs: list[Submission], asked_gpu_hours: float, person: Person) -> None:
    """Refuse what would go over the caller's limits; call it in the transaction that adds the submission."""
    rights = person.rights
    if len(jobs) >= rights.jobs:
        raise Problem(
            429, "quota-jobs", f"you have {len(jobs)} jobs that are not over, and may have {rights.jobs}: wait for one"
        )
    used = sum(job.gpus * job.hours for job in jobs)
    if used + asked_gpu_hours > rights.gpu_hours:
        raise Problem(
            429,
            "quota-gpu-hours",
            f"your jobs hold {used:g} GPU hours, this one asks for {asked_gpu_hours:g}, and you may hold"
            f" {rights.gpu_hours:g}: ask for fewer, or wait",
        )


def shown(job: Submission) -> dict[str, Any]:
    """A submission as the interface shows it."""
    fields = (
        *("id", "name", "label", "state", "reason_code", "reason", "entry_point", "params", "argv", "profile"),
        *("environment", "env_key", "nodes", "ranks_per_node", "resume", "gpus", "hours"),
        *("experiment", "experiment_id", "run_id"),
        *("job_id", "job_state", "restarts", "exit_code"),
        *("created_at", "submitted_at", "started_at", "ended_at", "cancel_at"),
    )
    content = {name: getattr(job, name) for name in fields}
    return {**content, "project": job.digest, "links": {"self": f"/v1/submissions/{job.id}"}}


def events_of(parts: Services, job: Submission) -> list[dict[str, Any]]:
    """The events of a submission as the interface shows them."""
    with parts.database.reading() as session:
        found = queries.events(session, job.id)
    return [{"time": e.time, "from": e.before, "to": e.after, "actor": e.actor, "detail": e.detail} for e in found]


def _refuse(field: str, message: str) -> None:
    raise Problem(422, "validation", f"{field} {message}", [{"pointer": f"/{field}", "message": message}])
