"""The loop of the worker."""

from __future__ import annotations

import logging
import threading

from bhive_mltf.gateway.identity.mint import Minter
from bhive_mltf.gateway.settings import Settings
from bhive_mltf.gateway.store import queries
from bhive_mltf.gateway.store.database import Database
from bhive_mltf.gateway.store.queries import NotLeadingError
from bhive_mltf.gateway.worker.leader import Office, lead
from bhive_mltf.gateway.worker.steps import Steps

logger = logging.getLogger(__name__)


def run(settings: Settings, stop: threading.Event) -> None:
    """Lead, and do steps until told to stop, or until another worker leads.

    Raises
    ------
    ConfigError : there is no signing key that can be used.
    NotLeadingError : another worker has begun to lead.
    """
    database = Database(settings.database_url)
    database.create()
    minter = Minter.load(settings.keys, settings.public_url)
    with lead(database, settings.spool / "worker.lock") as office:
        logger.info("leading, term %d", office.epoch)
        steps = Steps(settings, database, office, minter)
        while not stop.is_set():
            tick(steps, database, office)
            stop.wait(settings.tick_s)


def tick(steps: Steps, database: Database, office: Office) -> int:
    """One step of every submission that is not over; an error of one is logged and is no error of the others."""
    with office.writing():
        pass
    with database.reading() as session:
        found = queries.alive(session)
    failed = 0
    for submission in found:
        try:
            steps.do(submission)
        except NotLeadingError:
            raise
        except Exception as error:  # noqa: BLE001 - of one submission, whatever it is
            failed += 1
            logger.warning("%s in state %s: %s: %s", submission.id, submission.state, type(error).__name__, error)
    return failed
