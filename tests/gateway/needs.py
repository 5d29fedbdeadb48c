"""What the tests of the gateway need besides the package; what is missing is a skip, or a failure if required."""

import hashlib
import os
import shutil
import subprocess
import sys
import tempfile
from importlib.util import find_spec
from pathlib import Path

import pytest

REQUIRED = "BHIVE_REQUIRE_GATEWAY"  # set where something missing is a failure, such as in continuous integration
PACKAGES = ("alembic", "fastapi", "flask_wtf", "httpx", "jinja2", "jwt", "pathspec", "psycopg", "sqlalchemy", "uvicorn")
MLFLOW_BEFORE = "3.10.0"
PROVIDER = Path(__file__).parent / "provider"


def missing(sentence):
    """Skip, or fail where the gateway's tests are required."""
    (pytest.fail if os.environ.get(REQUIRED) else pytest.skip)(sentence)


def lacks_packages():
    """The packages of the extra `gateway` that are not installed."""
    return [name for name in PACKAGES if find_spec(name) is None]


def program(name, how):
    """The path of a program."""
    found = shutil.which(name)
    if found is None:
        missing(f"needs the program {name}: {how}")
    return found


def builds():
    """What environments are built with."""
    program("bwrap", "apt-get install bubblewrap")
    if not Path(sys.executable).with_name("uv").is_file():
        program("uv", "pip install uv")


def node_modules():
    """A folder with the sign-on provider and what it needs, installed once for each version of `package.json`."""
    program("node", "apt-get install nodejs")
    npm = program("npm", "apt-get install npm")
    text = (PROVIDER / "package.json").read_bytes()
    base = Path(os.environ.get("BHIVE_NODE_CACHE") or Path(tempfile.gettempdir()) / f"bhive-node-{os.getuid()}")
    folder = base / hashlib.sha256(text).hexdigest()[:12]

    def command(temporary):
        (temporary / "package.json").write_bytes(text)
        return [npm, "install", "--ignore-scripts", "--no-audit", "--no-fund", "--no-package-lock"]

    return installed_once(folder, "npm cannot install oidc-provider", command)


def mlflow_before():
    """A folder with an earlier MLflow, without the packages that it needs, for the front of PYTHONPATH."""
    packages = [f"{name}=={MLFLOW_BEFORE}" for name in ("mlflow", "mlflow-skinny", "mlflow-tracing")]

    def command(temporary):
        pip = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--only-binary", ":all:"]
        return [*pip, "--target", str(temporary), *packages]

    folder = Path(tempfile.gettempdir()) / f"bhive-mlflow-{os.getuid()}" / MLFLOW_BEFORE
    return installed_once(folder, f"pip cannot install mlflow {MLFLOW_BEFORE}", command)


def downloaded_wheels(requirements):
    """A folder with the wheels of these packages and of all that they need."""

    def command(temporary):
        pip = [sys.executable, "-m", "pip", "download", "--quiet", "--only-binary", ":all:"]
        return [*pip, "--dest", str(temporary), *requirements]

    name = hashlib.sha256("\n".join(requirements).encode()).hexdigest()[:12]
    folder = Path(tempfile.gettempdir()) / f"bhive-wheels-{os.getuid()}" / name
    return installed_once(folder, f"pip cannot download {' '.join(requirements)}", command, seconds=1200)


def installed_once(folder, trouble, command, seconds=300):
    """A folder that is kept for later sessions, filled by the command that installs into a temporary one."""
    if not folder.is_dir():
        folder.parent.mkdir(parents=True, exist_ok=True)
        temporary = Path(tempfile.mkdtemp(dir=folder.parent))
        options = {"cwd": temporary, "capture_output": True, "text": True, "check": False, "timeout": seconds}
        done = subprocess.run(command(temporary), **options)
        if done.returncode:
            shutil.rmtree(temporary, ignore_errors=True)
            missing(f"{trouble}: {done.stderr.strip()[-200:]}")
        try:
            temporary.rename(folder)
        except OSError:
            # another process was faster
            shutil.rmtree(temporary)
            if not folder.is_dir():
                raise
    return folder
