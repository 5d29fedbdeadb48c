"""The tests of the gateway are left out where the packages of its extra are not installed."""

import os
import shutil
import tempfile
from pathlib import Path

import pytest

from bhive_mltf.testing import slurm_lab
from bhive_mltf.testing.slurm_lab import packages
from tests.gateway import needs

_LACKING = needs.lacks_packages()
OF_STACK = {"test_controller_killed", "test_end_to_end", "test_hostile", "test_mlflow_pages", "test_several_nodes"}
# as a string of patterns: collection works without the packages, and says nothing about these files
collect_ignore_glob = ["test_*.py"] if _LACKING and not os.environ.get(needs.REQUIRED) else []


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config, log):
    """For processes that share the tests: modules of the stack go to one of them, each other module to any."""
    from xdist.scheduler import LoadFileScheduling

    class _OneStack(LoadFileScheduling):
        def _split_scope(self, nodeid):
            module = super()._split_scope(nodeid)
            return "stack" if Path(module).stem in OF_STACK else module

    # as they were collected: the stack's come first
    config.option.loadscopereorder = False
    return _OneStack(config, log)


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(items):
    """Tests of the stack, which take longest, come first, and then those of `tests/conftest.py`."""
    ours = {item: item.path.stem for item in items if item.path.parent == Path(__file__).parent}
    using = {name for item, name in ours.items() if "stack" in getattr(item, "fixturenames", ())}
    if using - OF_STACK:
        raise pytest.UsageError(f"{', '.join(using - OF_STACK)} use the stack: add them to OF_STACK in {__file__}")
    items.sort(key=lambda item: ours.get(item) not in OF_STACK)


@pytest.fixture(scope="session")
def stack():
    """All of a gateway with a real cluster, MLflow server and sign-on provider."""
    needs.program("bwrap", "apt-get install bubblewrap")
    needs.node_modules()
    from tests.gateway.stack import Stack

    if lacking := packages.missing(False):
        needs.missing(f"needs the Debian packages {' '.join(lacking)}; 'make slurm-up' installs them")
    # a short path of its own, which the nodes see
    folder = Path(tempfile.mkdtemp(prefix="mltf-stack-", dir="/tmp"))
    folder.chmod(0o755)
    lab = slurm_lab.up(slurm_lab.Settings(directory=folder / "lab"))
    made = Stack(folder, lab)
    try:
        made.start_all()
        yield made
    finally:
        made.stop_all()
        slurm_lab.down(lab.directory)
        if not os.environ.get("MLTF_KEEP"):
            shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture(scope="session")
def postgres():
    """A server of PostgreSQL for this session."""
    from tests.gateway.postgres import Postgres

    made = Postgres()
    yield made
    made.close()


@pytest.fixture(params=["sqlite", pytest.param("postgresql", marks=pytest.mark.gateway)])
def database_url(request, tmp_path):
    """The address of an empty database, of each kind."""
    if request.param == "postgresql":
        return request.getfixturevalue("postgres").new()
    return f"sqlite:///{tmp_path}/gateway.db"


@pytest.fixture
def whole(tmp_path, monkeypatch):
    """A gateway in one process, whose worker does a step when it is told to."""
    from tests.gateway.whole import Whole

    made = Whole(tmp_path, monkeypatch)
    yield made
    made.close()


@pytest.fixture
def alice(whole):
    """A person of that gateway."""
    from tests.gateway.test_api import User

    return User(whole.client, whole.provider, "alice")
