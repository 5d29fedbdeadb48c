"""Waiting for what another process or thread does."""

import time


def wait_for(condition, seconds=60.0, what="it"):
    """The first true value of `condition()`."""
    end = time.monotonic() + seconds
    while not (value := condition()):
        assert time.monotonic() < end, f"waited {seconds} s for {what}"
        time.sleep(0.1)
    return value
