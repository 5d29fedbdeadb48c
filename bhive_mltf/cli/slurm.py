"""`bhive-mltf slurm`: facility profiles, batch scripts, jobs, and a SLURM test cluster on this machine."""

from __future__ import annotations

import argparse
import shlex
import shutil
import sys
import textwrap
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from bhive_mltf.cli import slurm_jobs, slurm_lab
from bhive_mltf.errors import ProfileError

if TYPE_CHECKING:
    from bhive_mltf.slurm.profiles import Profile


def add_to(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the command to a parser."""
    parser = commands.add_parser(
        "slurm", help="facility profiles, batch scripts, jobs, a local test cluster", description=__doc__
    )
    actions = parser.add_subparsers(dest="action", required=True, metavar="ACTION")

    profiles = actions.add_parser("profiles", help="list the profiles, or show one")
    profiles.add_argument("profile", nargs="?", help="name or path")
    profiles.set_defaults(run=show_profiles)

    render = actions.add_parser("render", help="print the batch script of a job, without submitting")
    render.add_argument("profile", help="name or path")
    render.add_argument("options", nargs="*", metavar="KEY=VALUE", help="keys of the profile: hours=12 nodes=2 ...")
    render.add_argument("--ranks-per-node", type=int, default=0, help="0: one per GPU, else one")
    render.add_argument("--threads-per-rank", type=int, default=0, help="0: the CPUs of a rank in the profile")
    render.add_argument("--directory", default="output", help="output directory of the job")
    render.add_argument("--command", dest="runs", default="", help="command of each rank (default: a training)")
    render.set_defaults(run=render_script)

    environment = actions.add_parser("env", help="print the export that lets a shell use the local test cluster")
    environment.set_defaults(run=slurm_lab.environment)
    slurm_jobs.add_to(actions)
    slurm_lab.add_to(actions)


def show_profiles(options: argparse.Namespace) -> None:
    """Print the names and what they are for, or what one profile sets.

    Raises
    ------
    ProfileError : there is no such profile, or it is wrong.
    """
    from bhive_mltf.slurm import profiles

    if options.profile:
        _show(profiles.read_profile(options.profile))
        return
    names = profiles.available()
    if not names:
        raise ProfileError("there are no profiles here: BHIVE_FACILITY_DIR names a folder with some")
    width = max(map(len, names))
    for name in names:
        try:
            text = profiles.read_profile(name).description
        except ProfileError as error:
            text = f"wrong: {error}"
        columns = shutil.get_terminal_size().columns
        print(textwrap.fill(f"{name:<{width}}  {text}", columns, subsequent_indent=" " * (width + 2)))


def _show(profile: Profile) -> None:
    """Print what a profile sets, as a file that is a profile again."""
    import yaml

    values = profile.model_dump(mode="json", exclude={"name", "source"})
    shown = {key: value for key, value in values.items() if value or value is False}
    print(f"# {profile.source}")
    print(yaml.safe_dump(shown, sort_keys=False, allow_unicode=True), end="")


def render_script(options: argparse.Namespace) -> None:
    """Print the script that a training with these options would submit.

    Raises
    ------
    ProfileError : an option that no profile has, or whose value cannot be.
    """
    from bhive_mltf.slurm import job, profiles, script

    profile = profiles.read_profile(options.profile, **_settings(options.options))
    directory = Path(options.directory).absolute()
    training = [sys.executable, "-m", "bhive_mltf.training", str(directory / "plan.json")]
    spec = job.make_spec(
        profile,
        name="render",
        kind="ranks",
        command=shlex.split(options.runs) or training,
        directory=directory,
        ranks_per_node=options.ranks_per_node,
        threads_per_rank=options.threads_per_rank,
    )
    print(script.render(profile, spec), end="")


def _settings(texts: Sequence[str]) -> dict[str, object]:
    import yaml

    settings: dict[str, object] = {}
    for text in texts:
        key, separator, value = text.partition("=")
        if not separator:
            raise ProfileError(f"{text!r} is not KEY=VALUE, as in hours=12")
        settings[key.replace("-", "_")] = yaml.safe_load(value)
    return settings
