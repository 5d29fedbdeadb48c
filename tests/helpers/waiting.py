"""Waiting for what another process or thread does."""

import time


def wait_for(condition, seconds=60.0, what="it"):
    """The first true value of `condition()`."""
    end = time.monotonic() + seconds
    while not (value := condition()):
        assert time.monotonic() < end, f"waited {seconds} s for {what}"
        time.sleep(0.1)
    return value


def ends(paths, size=3000):
    """The ends of files, under their names, for the message of a test."""
    return [f"-- {path}\n{path.read_text(errors='replace')[-size:]}" for path in paths if path.is_file()]
