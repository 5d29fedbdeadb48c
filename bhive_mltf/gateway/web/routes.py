"""The pages."""

from __future__ import annotations

import time
from typing import Annotated, Any, Final

from fastapi import APIRouter, FastAPI, Query, Request, Response
from fastapi.responses import RedirectResponse

from bhive_mltf.gateway.api import logs, submissions
from bhive_mltf.gateway.api.problems import Problem
from bhive_mltf.gateway.api.services import Parts, Services
from bhive_mltf.gateway.store import queries
from bhive_mltf.gateway.store.tables import Owner, State, Submission
from bhive_mltf.gateway.web import text
from bhive_mltf.gateway.web.pages import render, static
from bhive_mltf.gateway.web.visitor import Form, Looking, PageError, Visitor

router = APIRouter(include_in_schema=False)
PAGE: Final = 25
_TAIL: Final = 65_536
_NOT_THERE: Final = "you have no such job"


def add_to(app: FastAPI) -> None:
    """Add the pages, and their way to say what is wrong."""
    app.include_router(router)

    @app.exception_handler(PageError)
    async def _page_error(request: Request, error: PageError) -> Response:
        if error.status == 401:
            # htmx puts what a redirect leads to into the page; this header makes the browser itself go there
            if "hx-request" in request.headers:
                return Response(status_code=401, headers={"HX-Redirect": "/"})
            return RedirectResponse("/", 303)
        return render("error.html", error.status, sentence=error.sentence, who=None)


@router.get("/")
def home(parts: Parts) -> Response:
    """Where one signs in."""
    settings = parts.settings
    return render("home.html", url=settings.public_url, has_page=bool(settings.provider.web_client), who=None)


@router.get("/jobs")
def jobs(who: Looking, parts: Parts, after: Annotated[str, Query(max_length=40)] = "") -> Response:
    """The visitor's jobs, newest first."""
    with parts.database.reading() as session:
        last = queries.submission_of(session, who.owner.id, after) if after else None
        if after and last is None:
            raise PageError(404, _NOT_THERE)
        found = queries.page(session, who.owner.id, after=last, limit=PAGE + 1)
    return render("jobs.html", who=who, jobs=found[:PAGE], more=len(found) > PAGE, now=time.time(), of={})


@router.get("/jobs/{job_id}")
def job(job_id: str, who: Looking, parts: Parts, follow: bool = True) -> Response:
    """One job: its state, what happened, and its log."""
    found = _mine(job_id, who, parts)
    size = logs.size(parts, found.id)
    # what follows is fetched by the page itself
    part = _log(parts, who, found.id, max(0, size - _TAIL))
    return render("job.html", who=who, follow=follow, **_shown(found, parts), **part)


@router.get("/jobs/{job_id}/state")
def state(job_id: str, who: Looking, parts: Parts) -> Response:
    """The part of a job's page that changes."""
    return render("state.html", who=who, **_shown(_mine(job_id, who, parts), parts))


@router.get("/jobs/{job_id}/log")
def log(job_id: str, who: Looking, parts: Parts, offset: Annotated[int, Query(ge=0)] = 0) -> Response:
    """The next part of a log."""
    return render("log.html", job=_mine(job_id, who, parts), follow=True, **_log(parts, who, job_id, offset))


@router.get("/jobs/{job_id}/cancel")
def ask_to_cancel(job_id: str, who: Looking, parts: Parts) -> Response:
    """Whether the visitor means it."""
    return render("cancel.html", who=who, job=_mine(job_id, who, parts))


@router.post("/jobs/{job_id}/cancel")
def cancel(job_id: str, who: Looking, parts: Parts, _: Form) -> Response:
    """Record the wish to cancel."""
    if submissions.wish_to_cancel(parts, who.owner.id, job_id) is None:
        raise PageError(404, _NOT_THERE)
    return RedirectResponse(f"/jobs/{job_id}", 303)


@router.get("/limits")
def limits(who: Looking, parts: Parts) -> Response:
    """What the visitor may use, and uses."""
    with parts.database.reading() as session:
        alive = queries.alive(session, who.owner.id)
    used = sum(one.gpus * one.hours for one in alive)
    profiles = {name: one for name, one in parts.settings.profiles.items() if name in who.rights.profiles}
    return render("limits.html", who=who, jobs=len(alive), gpu_hours=used, profiles=profiles)


@router.get("/admin")
def everybody(who: Looking, parts: Parts, after: Annotated[str, Query(max_length=40)] = "") -> Response:
    """The jobs of all people, for operators; others are told that there is no such page."""
    if not who.rights.admin:
        raise PageError(404, "there is no such page")
    with parts.database.reading() as session:
        last = session.get(Submission, after) if after else None
        found = queries.page(session, "", after=last, limit=PAGE + 1)
        owners = {one.owner: session.get(Owner, one.owner) for one in found}
    return render("jobs.html", who=who, jobs=found[:PAGE], more=len(found) > PAGE, now=time.time(), of=owners)


@router.get("/static/{name}")
def file(name: str) -> Response:
    """Style and script of the page."""
    found = static(name)
    if found is None:
        raise PageError(404, "there is no such page")
    return found


def _mine(job_id: str, who: Visitor, parts: Services) -> Submission:
    with parts.database.reading() as session:
        found = queries.submission_of(session, who.owner.id, job_id)
    if found is None:
        raise PageError(404, _NOT_THERE)
    return found


def _shown(job: Submission, parts: Services) -> dict[str, Any]:
    with parts.database.reading() as session:
        events = queries.events(session, job.id)
    # browsers take the part after # along on the way through the sign-in
    run = f"/auth/mlflow#/experiments/{job.experiment_id}/runs/{job.run_id}" if job.run_id else ""
    names = {one.value for one in State}
    return {"job": job, "events": events, "run": run, "states": names, "command": text.command(job)}


def _log(parts: Services, who: Visitor, job_id: str, offset: int) -> dict[str, Any]:
    try:
        content, is_over = logs.look(parts, who.owner.id, job_id, 0, (offset, logs.LARGEST))
    except Problem as error:
        raise PageError(error.status, error.detail) from None
    is_last = is_over and len(content) < logs.LARGEST
    shown, used = text.plain(content, is_last=is_last)
    return {"text": shown, "offset": offset + used, "is_last": is_last}
