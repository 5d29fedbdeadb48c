"""How the tasks speak to a person: each sentence once per command, and a BhiveError without its traceback."""

from __future__ import annotations

import logging
import re
import sys

from bhive_mltf.errors import BhiveError
from bhive_mltf.files import disk

logger = logging.getLogger("law.bhive_mltf")

_ERROR = re.compile(r"^bhive_mltf\.errors\.\w+: ", re.MULTILINE)
_WORKER = re.compile(r"^\[pid \d+\] Worker Worker\([^)]*\) ")
_BOOKKEEPING = re.compile(
    r"^Informed scheduler that task|was stopped. Shutting down Keep-Alive|^Done scheduling|^Running Worker"
)
_said: set[str] = set()


def warn_once(text: str) -> None:
    """Warn, once per command."""
    if text not in _said:
        _said.add(text)
        logger.warning(text)


def show_once(text: str) -> None:
    """Show a line at the terminal, once per command."""
    if text not in _said:
        _said.add(text)
        sys.stdout.write(f"{text}\n")


class Brief(logging.Filter):
    """luigi's messages without its bookkeeping; a BhiveError or a failing disk as one sentence, else the traceback."""

    def filter(self, record: logging.LogRecord) -> bool:
        text = record.getMessage()
        if record.levelno <= logging.INFO and _BOOKKEEPING.search(text):
            return False
        record.msg, record.args = _WORKER.sub("", text), ()
        error = record.exc_info[1] if record.exc_info else None
        if isinstance(error, OSError) and disk.is_trouble(error) and not isinstance(error, BhiveError):
            error = disk.cannot_use(error.filename or "a file", error)
        if isinstance(error, BhiveError):
            record.msg = f"{record.msg}\nerror: {error}"
            record.exc_info = record.exc_text = None
        elif "Traceback" in text:
            # luigi logs what complete() and deps() raise as text
            *_, sentence = _ERROR.split(text)
            if sentence != text and "Traceback" not in sentence:
                first = text.split("\n", 1)[0]
                record.msg = f"{first}\nerror: {sentence.strip()}"
        return True


def install() -> None:
    """Install the filter where luigi reports failed tasks."""
    luigi_logger = logging.getLogger("luigi-interface")
    if not any(isinstance(known, Brief) for known in luigi_logger.filters):
        luigi_logger.addFilter(Brief())
