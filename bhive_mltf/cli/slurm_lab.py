"""`bhive-mltf slurm lab`: a two-node SLURM cluster on this machine, for tests and development."""

from __future__ import annotations

import argparse
import shlex
from pathlib import Path

from bhive_mltf.errors import SlurmError


def add_to(actions: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the actions to a parser."""
    parser = actions.add_parser("lab", help="start or stop a two-node SLURM cluster on this machine, for tests")
    steps = parser.add_subparsers(dest="step", required=True, metavar="STEP")
    start = steps.add_parser("up", help="start it; one that runs is used as it is")
    start.add_argument("--directory", type=Path, help="where all its files go (default: a folder for temporary files)")
    start.add_argument("--port", type=int, default=0, help="first of ten ports (default: the first ten that are free)")
    start.add_argument("--accounting", action="store_true", help="with an accounting database, so that sacct works")
    start.add_argument(
        "--names",
        choices=("namespace", "address"),
        default="",
        help="node names by namespaces for host names, or by loopback addresses (default: what works)",
    )
    start.add_argument("--install", action="store_true", help="install missing Debian packages, as root")
    start.set_defaults(run=up)
    stop = steps.add_parser("down", help="cancel its jobs, stop it and remove its files")
    stop.add_argument("--directory", type=Path, help="where its files are (default: as for up)")
    stop.set_defaults(run=down)


def up(options: argparse.Namespace) -> None:
    """Start the cluster. SlurmError when packages are missing or a daemon does not start."""
    from bhive_mltf.testing import slurm_lab
    from bhive_mltf.testing.slurm_lab import packages

    if options.install and (installed := packages.install(options.accounting)):
        print(f"installed {' '.join(installed)}")
    asked = {"port": options.port, "names": options.names, "accounting": options.accounting}
    if options.directory:
        asked["directory"] = options.directory.absolute()
    found = slurm_lab.up(slurm_lab.Settings(**asked))
    if options.accounting and not found.settings.accounting:
        raise SlurmError(f"the lab in {found.directory} runs without accounting: 'bhive-mltf slurm lab down' stops it")
    names = ", ".join(name for name, _ in found.settings.nodes)
    print(f"nodes {names} are up in {found.directory}; --slurm local-lab uses them")
    print('for squeue and friends in this shell: eval "$(bhive-mltf slurm env)"')


def down(options: argparse.Namespace) -> None:
    """Stop the cluster."""
    from bhive_mltf.testing import slurm_lab

    print("stopped" if slurm_lab.down(options.directory) else "there is no lab cluster of this user")


def environment(options: argparse.Namespace) -> None:  # noqa: ARG001
    """Print the exports of the lab. SlurmError when none runs."""
    from bhive_mltf.slurm.local_cluster import running_conf

    print(f"export SLURM_CONF={shlex.quote(str(running_conf()))}")
