"""The environment that a submission asks for, held against its project and its profile."""

from __future__ import annotations

from typing import NoReturn

from bhive_mltf.errors import nearest
from bhive_mltf.gateway.api.problems import Problem
from bhive_mltf.gateway.environments import wanted
from bhive_mltf.gateway.errors import ArchiveError, ProjectError
from bhive_mltf.gateway.projects import archive, blobs
from bhive_mltf.gateway.settings import Settings
from bhive_mltf.gateway.store.tables import Project


def choose(asked: str, project: Project, profile_name: str, settings: Settings) -> str:
    """`profile`, `profile:NAME`, or the file of the project that the environment is built from.

    Parameters
    ----------
    asked : as in the request; empty takes the `python_env` of the project's `MLproject`, or else `profile`.

    Raises
    ------
    Problem : 422 when there is no such environment, or the profile builds none.
    """
    profile = settings.profiles[profile_name]
    if not asked:
        kind, _, value = project.environment.partition(": ")
        if kind in ("conda_env", "docker_env"):
            _refuse(
                f"MLproject asks for {kind}, which is not here: write a python_env.yaml instead, or hand in with"
                " environment 'profile' to use what the profile has"
            )
        asked = value or wanted.PREPARED
    word, _, name = asked.partition(":")
    if word == wanted.PREPARED:
        if name and name not in profile.environments:
            there = ", ".join(nearest(name, profile.environments)) or "none"
            _refuse(f"profile {profile_name} has no environment {name!r}; there are: {there}")
        return asked if name else wanted.PREPARED
    if word == "image":
        _refuse(f"profile {profile_name} has no images: write a python_env.yaml, or use 'profile'")
    if not profile.builds or settings.builds is None:
        _refuse(
            f"profile {profile_name} builds no environments, as {asked!r} asks for: hand in with environment 'profile'"
            " to use what the profile has"
        )
    return _checked(asked, project, settings)


def _checked(asked: str, project: Project, settings: Settings) -> str:
    """The file, if what it asks for can be built as far as that is seen without the index."""
    path = blobs.path_of(settings.spool, project.digest)
    try:
        name = wanted.file_of(asked)
        found = wanted.read_wanted(name, lambda one: archive.read_text(path, one, wanted.LARGEST_BYTES))
    except (ProjectError, ArchiveError) as error:
        _refuse(str(error))
    pythons = settings.builds.pythons if settings.builds is not None else {}
    if found.python and found.python not in pythons:
        _refuse(f"{name} asks for Python {found.asked_python}; there are {', '.join(pythons)}")
    return name


def _refuse(message: str) -> NoReturn:
    raise Problem(422, "environment", message, [{"pointer": "/environment", "message": message}])
