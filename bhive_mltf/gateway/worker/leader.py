"""One worker leads, others wait. Writing is tied to the number of a term: a worker that was paused writes nothing."""

from __future__ import annotations

import fcntl
import os
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from sqlalchemy.orm import Session

from bhive_mltf.gateway.store import queries
from bhive_mltf.gateway.store.database import Database

_KEY: Final = 0x6D6C7466_02


class Office:
    """A term as the worker that leads."""

    def __init__(self, database: Database, epoch: int) -> None:
        self._database, self.epoch = database, epoch

    @contextmanager
    def writing(self) -> Iterator[Session]:
        """A transaction that fails with NotLeadingError when another worker leads."""
        with self._database.writing() as session:
            queries.hold_office(session, self.epoch)
            yield session


@contextmanager
def lead(database: Database, lock: Path) -> Iterator[Office]:
    """Wait until no other worker leads, of this host (`lock`) or of another (PostgreSQL), then begin a term."""
    lock.parent.mkdir(parents=True, exist_ok=True)
    handle = os.open(lock, os.O_RDWR | os.O_CREAT, 0o600)
    try:
        while True:
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                time.sleep(1.0)
        with database.alone(_KEY):
            with database.writing() as session:
                epoch = queries.take_office(session, f"{socket.gethostname()}:{os.getpid()}")
            yield Office(database, epoch)
    finally:
        os.close(handle)
