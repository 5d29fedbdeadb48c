"""The nodes that a job was given, and where its ranks meet."""

from __future__ import annotations

import os
import re
import socket
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass

_FIRST_PORT, _PORTS = 20_000, 20_000
_TIMEOUT = 60.0  # s, for a question to the controller
_NODE_ADDRESS = re.compile(r"\bNodeAddr=(\S+)")


@dataclass(frozen=True)
class Allocation:
    """One start of a job: its id, how often it was started, its nodes."""

    job_id: str
    attempt: int
    nodes: tuple[str, ...]

    @classmethod
    def of(cls, environment: Mapping[str, str] = os.environ) -> Allocation:
        """The allocation of this batch step."""
        return cls(
            environment["SLURM_JOB_ID"],
            int(environment.get("SLURM_RESTART_COUNT") or 0) + 1,
            _expanded(environment.get("SLURM_JOB_NODELIST", "")),
        )

    @property
    def port(self) -> int:
        """A port that no other job on these nodes has, and that is free here if any is."""
        first = int(self.job_id) % _PORTS
        # another attempt of the same job may still hold the port of the one before
        for offset in range(0, _PORTS, 101):
            port = _FIRST_PORT + (first + offset) % _PORTS
            if is_free(port):
                return port
        return _FIRST_PORT + first

    def master_address(self) -> str:
        """The first node as the others reach it.

        Its name where that resolves, else its address as the controller knows it, else what SLURM_LAUNCH_NODE_IPADDR
        says of this node, which is the first one.
        """
        head = self.nodes[0]
        if resolves(head):
            return head
        found = _NODE_ADDRESS.search(_answer("scontrol", "show", "node", head))
        if found and resolves(found[1]):
            return found[1]
        return os.environ.get("SLURM_LAUNCH_NODE_IPADDR", head)


def is_free(port: int) -> bool:
    """Whether a server may listen on this port of all interfaces, as torch's store and SLURM's daemons do."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("", port))
        except OSError:
            return False
    return True


def resolves(name: str) -> bool:
    """Whether this machine finds an address for the name."""
    try:
        socket.getaddrinfo(name, None)
    except OSError:
        return False
    return True


def _expanded(nodes: str) -> tuple[str, ...]:
    """`n[1-2]` as names, by SLURM itself; as it is when the command does not answer."""
    return tuple(_answer("scontrol", "show", "hostnames", nodes).split()) or (nodes,)


def _answer(*command: str) -> str:
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=_TIMEOUT, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return done.stdout if done.returncode == 0 else ""
