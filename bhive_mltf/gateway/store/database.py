"""The database itself: SQLite for one machine."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Final

from sqlalchemy import Engine, create_engine, event
from sqlalchemy.engine import Connection
from sqlalchemy.orm import Session

from bhive_mltf.gateway.store.tables import Base

_WRITES: Final = "mltf_writes"
_BUSY_S: Final = 30.0


class Database:
    """Transactions of one database.

    Parameters
    ----------
    url : as SQLAlchemy takes it, such as `sqlite:////var/lib/mltf/gateway.db`.
    """

    def __init__(self, url: str) -> None:
        is_sqlite = url.startswith("sqlite")
        arguments = {"timeout": _BUSY_S, "check_same_thread": False} if is_sqlite else {}
        self.engine: Engine = create_engine(url, connect_args=arguments, pool_pre_ping=True)
        if is_sqlite:
            event.listen(self.engine, "connect", _prepare)
            event.listen(self.engine, "begin", _begin)

    def create(self) -> None:
        """Make the tables that are not there yet."""
        Base.metadata.create_all(self.engine)

    @contextmanager
    def reading(self) -> Iterator[Session]:
        """A session that reads; what it hands out stays usable."""
        with Session(self.engine, expire_on_commit=False) as session:
            yield session

    @contextmanager
    def writing(self) -> Iterator[Session]:
        """A transaction that writes from its beginning on: it is committed at the end, or undone by an error."""
        with Session(self.engine, expire_on_commit=False) as session, session.begin():
            session.connection(execution_options={_WRITES: True})
            yield session

    def close(self) -> None:
        """Close all connections."""
        self.engine.dispose()


def _prepare(connection: Any, _: object) -> None:  # noqa: ANN401 - of the database driver
    # the driver's own transactions begin too late: at the first write
    connection.isolation_level = None
    cursor = connection.cursor()
    for pragma in ("journal_mode=WAL", "synchronous=FULL", "foreign_keys=ON"):
        cursor.execute(f"PRAGMA {pragma}")
    cursor.close()


def _begin(connection: Connection) -> None:
    writes = connection.get_execution_options().get(_WRITES)
    connection.exec_driver_sql("BEGIN IMMEDIATE" if writes else "BEGIN")
