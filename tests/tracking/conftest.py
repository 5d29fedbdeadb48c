import logging
import os
import shutil

import pytest

from bhive_mltf import compat
from bhive_mltf.tracking import connection, store
from tests.helpers import tracking_server


@pytest.fixture
def said(caplog):
    """Call it for the warnings so far; mlflow's own lines, which pytest sees before mlflow's filter, do not count."""

    def said():
        return [
            record.getMessage()
            for record in caplog.records
            if record.levelno >= logging.WARNING and not record.name.startswith("mlflow")
        ]

    return said


@pytest.fixture(autouse=True)
def clean_environment():
    """No MLflow settings from outside; none left behind."""
    before = dict(os.environ)
    for name in list(os.environ):
        if name.startswith("MLFLOW_"):
            del os.environ[name]
    yield
    os.environ.clear()
    os.environ.update(before)


@pytest.fixture(scope="session")
def empty_store(tmp_path_factory):
    """A SQLite store without runs: making its tables takes two seconds, copying it none; None without SQLite."""
    if not compat.has_sqlalchemy():
        return None
    return tracking_server.empty_store(tmp_path_factory)


@pytest.fixture
def data_path(tmp_path, empty_store):
    """A DATA_PATH with a space in it."""
    path = tmp_path / "data path"
    path.mkdir()
    if empty_store is not None:
        shutil.copy(empty_store, path / "mlflow.db")
    return path


@pytest.fixture
def client(data_path):
    connection.load()
    return connection.connect(store.tracking_uri(data_path))


@pytest.fixture(scope="session")
def server(tmp_path_factory, empty_store):
    """The address of a real `mlflow server`, one for all workers of a run."""
    if empty_store is None:
        pytest.skip("mlflow-skinny has no server")
    return tracking_server.of_the_run(tmp_path_factory)


@pytest.fixture
def relay(server):
    relay = tracking_server.Relay(server)
    yield relay
    relay.shut()
