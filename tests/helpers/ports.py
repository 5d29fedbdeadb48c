"""Ports for servers that a test starts and, once they were killed, starts again."""

import itertools
import os
import socket

# below what Linux gives to connections (32768 to 60999), so that no connection takes the port of a server that is away
FIRST, OF_A_PROCESS, PROCESSES = 20_000, 1000, 10
_worker = int(os.environ.get("PYTEST_XDIST_WORKER", "gw0").removeprefix("gw")) % PROCESSES
# other sessions on this machine begin elsewhere
_offsets = itertools.count(os.getpid() * 7 % OF_A_PROCESS)


def free_port(count=1):
    """The first of some consecutive ports that are free; no two calls in one test session give the same."""
    for _ in range(OF_A_PROCESS):
        offsets = [next(_offsets) % OF_A_PROCESS for _ in range(count)]
        first = FIRST + _worker * OF_A_PROCESS + offsets[0]
        if offsets == list(range(offsets[0], offsets[0] + count)) and all(map(_is_free, range(first, first + count))):
            return first
    raise AssertionError(f"no {count} free ports of {OF_A_PROCESS}")


def _is_free(port):
    with socket.socket() as one:
        try:
            one.bind(("127.0.0.1", port))
        except OSError:
            return False
    return True
