"""The log of a job: ranges of bytes, and a reader may wait for more."""

from __future__ import annotations

import asyncio
import time
from pathlib import Path
from typing import Annotated, Final

from fastapi import APIRouter, Query, Response
from fastapi.concurrency import run_in_threadpool

from bhive_mltf.gateway import faults
from bhive_mltf.gateway.api.problems import Problem, not_found
from bhive_mltf.gateway.api.services import Me, Parts, Services
from bhive_mltf.gateway.store import queries

router = APIRouter()
LARGEST: Final = 2**20
_LOOK_S: Final = 0.5


@router.get("/v1/submissions/{job_id}/log")
async def log(  # noqa: PLR0917 - parameters of the request
    job_id: str,
    person: Me,
    parts: Parts,
    rank: Annotated[int, Query(ge=0, le=100_000)] = 0,
    offset: Annotated[int, Query(ge=0)] = 0,
    limit: Annotated[int, Query(ge=1, le=LARGEST)] = LARGEST,
    wait: Annotated[float, Query(ge=0, le=25)] = 0,
) -> Response:
    """Bytes of a log from `offset` on.

    `X-Log-Next` is the offset to ask for next; `X-Log-Complete` is `true` when nothing follows. With `wait`, the answer
    comes when there is something new, at the latest after so many seconds.
    """
    deadline = time.monotonic() + wait
    while True:
        content, is_over = await run_in_threadpool(look, parts, person.owner.id, job_id, rank, (offset, limit))
        if content or is_over or time.monotonic() >= deadline:
            break
        await asyncio.sleep(_LOOK_S)
    complete = is_over and len(content) < limit
    headers = {"X-Log-Next": str(offset + len(content)), "X-Log-Complete": str(complete).lower()}
    return Response(content, media_type="text/plain; charset=utf-8", headers=headers)


def look(parts: Services, owner: str, job_id: str, rank: int, part: tuple[int, int]) -> tuple[bytes, bool]:
    """Bytes of a log from an offset on, at most so many (`part`), and whether nothing follows after the last of them.

    Raises
    ------
    Problem : 404 when the owner has no such job, 416 for an offset behind the end.
    """
    with parts.database.reading() as session:
        job = queries.submission_of(session, owner, job_id)
    if job is None:
        raise not_found()
    faults.point("in_log")
    # after the state: what was written before the end is then read for sure
    return _range(_path(parts, job.id, rank), *part), job.is_over


def size(parts: Services, job_id: str, rank: int = 0) -> int:
    """Bytes of a log; 0 without one."""
    try:
        return _path(parts, job_id, rank).stat().st_size
    except FileNotFoundError:
        return 0


def _path(parts: Services, job_id: str, rank: int) -> Path:
    return parts.settings.job_folder(job_id) / "logs" / f"rank_{rank}.log"


def _range(path: Path, offset: int, limit: int) -> bytes:
    try:
        with path.open("rb") as file:
            file.seek(0, 2)
            if offset > file.tell():
                raise Problem(416, "range", f"the log has {file.tell()} bytes, and was asked for from {offset} on")
            file.seek(offset)
            return file.read(limit)
    except FileNotFoundError:
        if offset:
            raise Problem(416, "range", "there is no log yet") from None
        return b""
