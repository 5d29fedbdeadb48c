"""The database itself: SQLite for one machine, PostgreSQL else."""

from __future__ import annotations

import sqlite3
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Final

from sqlalchemy import Engine, create_engine, event, text
from sqlalchemy.engine import Connection
from sqlalchemy.exc import DBAPIError
from sqlalchemy.orm import Session

from bhive_mltf.errors import ConfigError
from bhive_mltf.gateway.store import schema

_WRITES: Final = "mltf_writes"
_BUSY_S: Final = 30
_SQLITE: Final[dict[str, Any]] = {"connect_args": {"timeout": _BUSY_S, "check_same_thread": False}}
_POSTGRESQL: Final[dict[str, Any]] = {
    "pool_size": 20,
    "max_overflow": 20,
    "connect_args": {
        "connect_timeout": 10,
        "application_name": "mltf-gateway",
        # a process that hangs holds no row for ever
        "options": f"-c statement_timeout={_BUSY_S}s -c idle_in_transaction_session_timeout=60s",
    },
}


class Database:
    """Transactions of one database.

    Parameters
    ----------
    url : as SQLAlchemy takes it, such as `sqlite:////var/lib/mltf/gateway.db` or `postgresql+psycopg://mltf@host/mltf`.
    """

    def __init__(self, url: str) -> None:
        self.is_sqlite = url.startswith("sqlite")
        options = _SQLITE if self.is_sqlite else _POSTGRESQL
        self.engine: Engine = create_engine(url, pool_pre_ping=True, **options)
        if self.is_sqlite:
            event.listen(self.engine, "connect", _prepare)
            event.listen(self.engine, "begin", _begin)

    def create(self) -> None:
        """Make the tables of an empty database.

        Raises
        ------
        ConfigError : the database has another revision than this program needs, or cannot be used.
        """
        self._with_schema(schema.prepare)

    def upgrade(self) -> None:
        """Bring the tables to the revision that this program needs; ConfigError as for `create`."""
        self._with_schema(schema.upgrade)

    def _with_schema(self, change: Callable[[Connection], None]) -> None:
        try:
            with self.engine.connect().execution_options(**{_WRITES: True}) as connection, connection.begin():
                change(connection)
        except DBAPIError as error:
            place = self.engine.url.render_as_string(hide_password=True)
            reason = str(error.orig).strip().splitlines()[0] if str(error.orig).strip() else type(error.orig).__name__
            raise ConfigError(f"the database {place} cannot be used ({reason})") from None

    @contextmanager
    def alone(self, key: int) -> Iterator[None]:
        """Wait until no other process holds this key, then hold it; on SQLite, which is of one machine, nothing.

        A lost connection lets the key go unnoticed: what is written meanwhile needs a guard of its own.
        """
        if self.is_sqlite:
            yield
            return
        with self.engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
            while not connection.scalar(text("SELECT pg_try_advisory_lock(:key)"), {"key": key}):
                time.sleep(1.0)
            try:
                yield
            finally:
                # closed, not handed back: the key goes with the connection
                connection.invalidate()

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
    _use_write_ahead_log(cursor)
    for pragma in ("synchronous=FULL", "foreign_keys=ON"):
        cursor.execute(f"PRAGMA {pragma}")
    cursor.close()


def _use_write_ahead_log(cursor: Any) -> None:  # noqa: ANN401 - of the database driver
    # several that change it at once are refused at once, whatever the time-out
    deadline = time.monotonic() + _BUSY_S
    while not _is_set(cursor):
        if time.monotonic() > deadline:
            raise sqlite3.OperationalError("database is locked")
        time.sleep(0.05)


def _is_set(cursor: Any) -> bool:  # noqa: ANN401 - of the database driver
    try:
        cursor.execute("PRAGMA journal_mode=WAL")
    except sqlite3.OperationalError as error:
        if error.sqlite_errorcode & 0xFF != sqlite3.SQLITE_BUSY:
            raise
        return False
    return True


def _begin(connection: Connection) -> None:
    writes = connection.get_execution_options().get(_WRITES)
    connection.exec_driver_sql("BEGIN IMMEDIATE" if writes else "BEGIN")
