"""Handing in, looking at and cancelling jobs. The API writes a submission until it is `accepted`, never after."""

from __future__ import annotations

import time
from typing import Annotated, Any

from fastapi import APIRouter, Header, Query, Response

from bhive_mltf.gateway import faults
from bhive_mltf.gateway.api import environments, requests
from bhive_mltf.gateway.api.problems import Problem, not_found
from bhive_mltf.gateway.api.requests import SubmissionRequest
from bhive_mltf.gateway.api.services import Me, Parts, Person, Services
from bhive_mltf.gateway.store import queries
from bhive_mltf.gateway.store.tables import Project, State, Submission

router = APIRouter()
ACTOR = "owner"


@router.post("/v1/submissions", status_code=201)
def submit(  # noqa: PLR0917 - parameters of the request
    request: SubmissionRequest,
    response: Response,
    person: Me,
    parts: Parts,
    idempotency_key: Annotated[str, Header(min_length=8, max_length=200)],
    dry_run: bool = False,
) -> dict[str, Any]:
    """Hand in a project; the same key with the same request answers with the same job."""
    profile = requests.profile_of(request, person, parts)
    with parts.database.reading() as session:
        project = queries.project_of(session, person.owner.id, request.project)
    if project is None:
        raise Problem(422, "project", "you have not uploaded this project: PUT it to /v1/projects/{digest} first")
    chosen = {
        "argv": requests.argv_of(request, project),
        "profile": request.profile,
        "environment": environments.choose(request.environment, project, request.profile, parts.settings),
        "hours": request.hours or profile.max_hours,
    }
    if dry_run:
        response.status_code = 200
        return chosen
    job, is_new = _insert(request, person, parts, project, idempotency_key, chosen=chosen)
    if job.state == State.CREATING.value:
        job = _track(job.id, request, person, parts)
    response.status_code = 201 if is_new else 200
    return requests.shown(job)


@router.get("/v1/submissions")
def listing(  # noqa: PLR0917 - parameters of the request
    person: Me,
    parts: Parts,
    response: Response,
    state: Annotated[str, Query(max_length=20)] = "",
    label: Annotated[str, Query(max_length=100)] = "",
    after: Annotated[str, Query(max_length=40)] = "",
    limit: Annotated[int, Query(ge=1, le=200)] = 50,
) -> dict[str, Any]:
    """The caller's jobs, newest first, page by page."""
    with parts.database.reading() as session:
        last = queries.submission_of(session, person.owner.id, after) if after else None
        if after and last is None:
            raise not_found()
        found = queries.page(session, person.owner.id, state=state, label=label, after=last, limit=limit + 1)
    shown = found[:limit]
    if len(found) > limit:
        response.headers["Link"] = f'</v1/submissions?after={shown[-1].id}&limit={limit}>; rel="next"'
    return {"submissions": [requests.shown(job) for job in shown], "next": shown[-1].id if len(found) > limit else ""}


@router.get("/v1/submissions/{job_id}")
def show(job_id: str, person: Me, parts: Parts) -> dict[str, Any]:
    """One of the caller's jobs, with what happened to it."""
    job = _mine(job_id, person, parts)
    return {**requests.shown(job), "events": requests.events_of(parts, job)}


@router.post("/v1/submissions/{job_id}/cancel", status_code=202)
def cancel(job_id: str, response: Response, person: Me, parts: Parts) -> dict[str, Any]:
    """Record the wish to cancel; the worker does it. A job that is over stays as it is."""
    job = wish_to_cancel(parts, person.owner.id, job_id)
    if job is None:
        raise not_found()
    if job.is_over:
        response.status_code = 200
    return requests.shown(job)


def wish_to_cancel(parts: Services, owner: str, job_id: str) -> Submission | None:
    """Record the wish of an owner, unless the job is over; the job, None when the owner has no such job."""
    with parts.database.writing() as session:
        job = queries.submission_of(session, owner, job_id, to_write=True)
        if job is not None and not job.is_over and job.cancel_at is None:
            job.cancel_at, job.cancel_by = time.time(), ACTOR
            faults.point("in_cancel")
    faults.point("after_cancel")
    return job


def _mine(job_id: str, person: Person, parts: Services) -> Submission:
    with parts.database.reading() as session:
        job = queries.submission_of(session, person.owner.id, job_id)
    if job is None:
        raise not_found()
    return job


def _insert(
    request: SubmissionRequest, person: Person, parts: Services, project: Project, key: str, *, chosen: dict[str, Any]
) -> tuple[Submission, bool]:
    """The row of this key, new or as it is; quota and row are one transaction.

    chosen : columns that request, project and profile decide together.
    """
    gpus = request.nodes * parts.settings.profiles[request.profile].gpus_per_node
    with parts.database.writing() as session:
        queries.lock_owner(session, person.owner.id)
        before = queries.submission_by_key(session, person.owner.id, key)
        if before is not None:
            if before.request_hash != request.digest():
                raise Problem(409, "idempotency", "this idempotency key was used for another request: take a new one")
            return before, False
        requests.check_quota(list(queries.alive(session, person.owner.id)), gpus * chosen["hours"], person)
        job = Submission(
            owner=person.owner.id,
            idem_key=key,
            request_hash=request.digest(),
            digest=project.digest,
            name=request.name or project.name or request.entry_point,
            label=request.label,
            entry_point=request.entry_point,
            params=request.parameters,
            nodes=request.nodes,
            ranks_per_node=request.ranks_per_node,
            resume=request.resume,
            gpus=gpus,
            experiment=f"{person.owner.mlflow_name}/{request.experiment or project.name or 'project'}",
            **chosen,
        )
        session.add(job)
        session.flush()
        queries.move(session, job, State.CREATING, ACTOR, "handed in")
        session.flush()
        faults.point("in_row")
    faults.point("after_row")
    return job, True


def _track(job_id: str, request: SubmissionRequest, person: Person, parts: Services) -> Submission:
    """Make experiment and run, by names that are there before; then hand the submission over to the worker."""
    job = _mine(job_id, person, parts)
    tags = {
        **{name: value for name, value in request.tags.items() if not name.startswith(("mlflow.", "mltf."))},
        "mlflow.source.type": "PROJECT",
        "mlflow.source.name": job.name,
        "mlflow.project.entryPoint": job.entry_point,
        "mlflow.project.backend": "mltf",
        "mltf.profile": job.profile,
        "mltf.environment": job.environment,
        "mltf.project_digest": job.digest,
    }
    with parts.tracking(person.owner) as tracking:
        experiment_id = tracking.experiment(job.experiment)
        faults.point("after_experiment")
        run_id = tracking.run(experiment_id, job.id, job.name, person.owner.mlflow_name, tags)
        faults.point("after_run")
        tracking.log_params(run_id, job.params)
        tracking.set_status(run_id, "SCHEDULED")
    faults.point("after_scheduled")
    with parts.database.writing() as session:
        row = queries.submission_of(session, person.owner.id, job_id, to_write=True)
        if row is None:
            raise not_found()
        if row.state == State.CREATING.value:
            values = {"experiment_id": experiment_id, "run_id": run_id, "run_status_sent": "SCHEDULED"}
            queries.move(session, row, State.ACCEPTED, ACTOR, f"run {run_id}", **values)
    faults.point("after_accept")
    return row
