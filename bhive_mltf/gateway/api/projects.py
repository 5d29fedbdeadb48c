"""Uploading a project: one stream to disk, inspected before anybody can name it."""

from __future__ import annotations

import os
import secrets
from pathlib import Path
from typing import Any

from fastapi import APIRouter, Request, Response
from fastapi.concurrency import run_in_threadpool

from bhive_mltf.gateway import faults
from bhive_mltf.gateway.api.problems import Problem, not_found
from bhive_mltf.gateway.api.services import Me, Parts, Services
from bhive_mltf.gateway.errors import ArchiveError
from bhive_mltf.gateway.projects import archive, blobs
from bhive_mltf.gateway.projects.archive import Contents
from bhive_mltf.gateway.settings import Limits
from bhive_mltf.gateway.store import queries
from bhive_mltf.gateway.store.tables import Project

router = APIRouter()


@router.head("/v1/projects/{digest}")
def look(digest: str, person: Me, parts: Parts) -> Response:
    """Whether the caller has uploaded this project."""
    if _known(parts, person.owner.id, digest) is None:
        raise not_found("project")
    return Response(status_code=200)


@router.put("/v1/projects/{digest}")
async def upload(digest: str, request: Request, response: Response, person: Me, parts: Parts) -> dict[str, Any]:
    """Take a tar archive, gzipped or not; `digest` is the SHA-256 of the tar itself."""
    if not blobs.DIGEST.fullmatch(digest):
        raise Problem(422, "digest", "the digest must be 64 hexadecimal characters in lower case")
    encoding = request.headers.get("content-encoding", "identity").lower()
    if encoding not in ("identity", "gzip"):
        raise Problem(415, "encoding", "the content encoding must be gzip, or none")
    known = await run_in_threadpool(_known, parts, person.owner.id, digest)
    if known is not None:
        # the body is not read: what the caller has uploaded once is there
        return known
    # beside the archives, which may be a file system of their own
    temporary = parts.settings.spool / "blobs" / "incoming" / secrets.token_hex(16)
    temporary.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    await run_in_threadpool(blobs.remove_left, temporary.parent)
    try:
        limits = parts.settings.limits
        received = await blobs.receive(request.stream(), temporary, limits, gzipped=encoding == "gzip")
        if received != digest:
            raise Problem(422, "digest", f"the archive has the digest {received}, not the one of the address")
        contents = await run_in_threadpool(_inspected, temporary, limits)
        found = await run_in_threadpool(_keep, parts, person.owner.id, digest, temporary, contents)
    except blobs.TooLargeError as error:
        raise Problem(413, "too-large", str(error)) from None
    except ArchiveError as error:
        raise Problem(422, "archive", str(error)) from None
    finally:
        temporary.unlink(missing_ok=True)
    response.status_code = 201
    return found


def _known(parts: Services, owner: str, digest: str) -> dict[str, Any] | None:
    with parts.database.reading() as session:
        project = queries.project_of(session, owner, digest)
        return None if project is None else _shown(project)


def _inspected(path: Path, limits: Limits) -> Contents:
    faults.point("after_upload")
    contents = archive.check(path, limits)
    faults.point("after_inspection")
    return contents


def _keep(parts: Services, owner: str, digest: str, temporary: Path, contents: Contents) -> dict[str, Any]:
    path = blobs.path_of(parts.settings.spool, digest)
    path.parent.mkdir(parents=True, exist_ok=True)
    # on disk before it has its name: after a power cut an archive is whole, or is not there
    with temporary.open("rb") as file:
        os.fsync(file.fileno())
    temporary.replace(path)
    faults.point("after_blob")
    with parts.database.writing() as session:
        made = Project(
            digest=digest,
            bytes=contents.bytes,
            files=contents.files,
            name=contents.name,
            entry_points=contents.entry_points,
            environment=contents.environment,
        )
        project = queries.remember_project(session, owner, made)
        shown = _shown(project)
    faults.point("after_project")
    return shown


def _shown(project: Project) -> dict[str, Any]:
    return {
        "digest": project.digest,
        "bytes": project.bytes,
        "files": project.files,
        "name": project.name,
        "entry_points": sorted(project.entry_points),
        "environment": project.environment,
    }
