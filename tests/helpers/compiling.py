"""Functions in C, built by the tests: what is tested must not depend on how the package was installed."""

import shutil
import subprocess

import pytest


def shared_library(folder, *sources):
    """Build a library in `folder`, every warning an error; skips without a compiler."""
    compiler = shutil.which("cc")
    if compiler is None:
        pytest.skip("no C compiler")
    path = folder / f"{sources[0].stem}.so"
    command = [compiler, "-O3", "-Wall", "-Wextra", "-Werror", "-shared", "-fPIC", "-o", path, *sources]
    subprocess.run(command, check=True)
    return path
