"""The schema of the database: which revision it has, and how it gets the newest."""

from __future__ import annotations

from pathlib import Path
from typing import Final

from alembic import command
from alembic.config import Config
from alembic.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import inspect, text
from sqlalchemy.engine import Connection

from bhive_mltf.errors import ConfigError

_PLACE: Final = Path(__file__).parent / "migrations"
# The revision of databases that were made before there were revisions.
_UNMARKED: Final = "0001"
# One upgrade at a time; the number means nothing else.
_UPGRADING: Final = 0x6D6C7466_01


def newest() -> str:
    """The revision that this program needs."""
    return str(ScriptDirectory.from_config(_config()).get_current_head())


def upgrade(connection: Connection, revision: str = "head") -> None:
    """Bring the database to a revision, in the transaction of the connection: as a whole, or not at all.

    Raises
    ------
    ConfigError : the database has a revision that this program does not know.
    """
    if connection.dialect.name == "postgresql":
        connection.execute(text("SELECT pg_advisory_xact_lock(:key)"), {"key": _UPGRADING})
    configuration = _config()
    configuration.attributes["connection"] = connection
    found = _revision(connection)
    if found is None and inspect(connection).has_table("owner"):
        command.stamp(configuration, _UNMARKED)
    elif found is not None:
        _check_is_known(found)
    command.upgrade(configuration, revision)


def prepare(connection: Connection) -> None:
    """Make the tables of an empty database; nothing is changed in another.

    Raises
    ------
    ConfigError : the database has another revision than this program needs.
    """
    found = _revision(connection)
    if found == newest():
        return
    if found is None and not inspect(connection).has_table("owner"):
        upgrade(connection)
        return
    _check_is_known(found or _UNMARKED)
    raise ConfigError(
        f"the database has the schema {found or _UNMARKED}, and this program needs {newest()}: stop API and worker,"
        " make a backup and run 'db upgrade'"
    )


def _revision(connection: Connection) -> str | None:
    return MigrationContext.configure(connection).get_current_revision()


def _check_is_known(revision: str) -> None:
    if revision not in {one.revision for one in ScriptDirectory.from_config(_config()).walk_revisions()}:
        raise ConfigError(
            f"the database has the schema {revision}, newer than this program: install the version that made it"
        )


def _config() -> Config:
    made = Config()
    made.set_main_option("script_location", str(_PLACE).replace("%", "%%"))
    made.set_main_option("path_separator", "os")
    return made
