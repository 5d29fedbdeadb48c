"""Other packages in the versions that upstream has, and without those that are optional."""

import os
import re
import signal
import tomllib
from dataclasses import dataclass, make_dataclass
from importlib import metadata
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from packaging.requirements import Requirement

from bhive_mltf import compat
from bhive_mltf.data.ntuples.root_reader import open_tree
from bhive_mltf.errors import DataError, ParameterError
from bhive_mltf.tracking import attach, logged_model, prepare, store
from bhive_mltf.tracking.connection import connect

REPOSITORY = Path(__file__).parents[1]
PROJECT = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["project"]


def pins():
    lines = (REPOSITORY / "constraints-upstream.txt").read_text().splitlines()
    return dict(line.split("==") for line in lines if re.match(r"\w", line))


def test_d06_the_declared_floors_are_what_upstreams_pins_hold():
    pinned = pins()
    floors = {Requirement(line).name: str(Requirement(line).specifier) for line in PROJECT["dependencies"]}
    for line in PROJECT["dependencies"] + PROJECT["optional-dependencies"]["evaluation"]:
        needed = Requirement(line)
        assert needed.specifier.contains(pinned.get(needed.name, "99")), line
    for name in ("torch", "numpy", "law", "mlflow-skinny", "uproot"):
        assert pinned[name].startswith(floors[name].removeprefix(">=")), name


@pytest.mark.skipif("BHIVE_TEST_PINS" not in os.environ, reason="only `make test-upstream` has upstream's versions")
def test_d06_installing_ours_touched_no_pin():
    assert {name: metadata.version(name).partition("+")[0] for name in pins()} == pins()


def test_d06_norm_of_all_gradients_on_torch_2_5(monkeypatch):
    tensors = [torch.randn(3, 4), torch.randn(5), torch.tensor(2.0)]
    new = compat.total_norm(tensors)
    monkeypatch.delattr(torch.nn.utils, "get_total_norm", raising=False)
    torch.testing.assert_close(compat.total_norm(iter(tensors)), new)
    assert compat.total_norm([]) == 0


@pytest.mark.parametrize("name", ["recompile_limit", "cache_size_limit"])
def test_d06_number_of_compiled_variants_by_both_names(monkeypatch, name):
    config = SimpleNamespace(**{name: 8})
    monkeypatch.setattr("torch._dynamo.config", config)
    compat.set_compiled_variants(64)
    assert vars(config) == {name: 64}


@pytest.fixture
def torch_2_5(monkeypatch):
    """torch's launcher as it was: without the options that are newer."""
    fields = ("stdouts", "stderrs", "tee_stdouts", "tee_stderrs", "error_files")
    monkeypatch.setattr("torch.distributed.elastic.multiprocessing.LogsDest", make_dataclass("LogsDest", fields))

    @dataclass
    class LaunchConfig:
        nproc_per_node: int

    monkeypatch.setattr("torch.distributed.launcher.api.LaunchConfig", LaunchConfig)


def test_d06_files_of_ranks_on_torch_2_5(torch_2_5):
    made = compat.logs_dest({0: ""}, {0: "a.log"}, {0: "a.log"}, {0: "e"}, "off")
    assert vars(made) == {
        "stdouts": {0: ""},
        "stderrs": {0: "a.log"},
        "tee_stdouts": {},
        "tee_stderrs": {0: "a.log"},
        "error_files": {0: "e"},
    }


def test_d06_nohup_holds_on_torch_2_5(torch_2_5):
    from torch.distributed.elastic.multiprocessing import api

    config = compat.launch_config([signal.SIGTERM], 15, nproc_per_node=2)
    assert vars(config) == {"nproc_per_node": 2}
    handlers = {number: signal.getsignal(number) for number in (signal.SIGHUP, signal.SIGTERM)}
    try:
        signal.signal(signal.SIGHUP, signal.SIG_IGN)
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        with compat.ignored_signals():
            for number in handlers:
                api.signal.signal(number, print)
        assert api.signal is signal
        assert signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
        assert signal.getsignal(signal.SIGTERM) is print
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)


def test_what_is_not_installed_is_named_with_its_extra():
    compat.require("ROCCurveTask", "evaluation", "json")
    with pytest.raises(ParameterError, match="ROCCurveTask needs nowhere_to_be_found") as caught:
        compat.require("ROCCurveTask", "evaluation", "json", "nowhere_to_be_found")
    assert str(caught.value).endswith("pip install 'bhive_mltf[evaluation]'")
    assert "evaluation" in PROJECT["optional-dependencies"]


def test_root_files_are_refused_by_uproot_4(monkeypatch, tmp_path):
    (tmp_path / "jets.root").write_bytes(b"root")
    monkeypatch.setattr(compat, "major", lambda package: 4)
    with pytest.raises(DataError, match="uproot") as caught, open_tree(str(tmp_path / "jets.root"), "tree", ["pt"]):
        pass
    assert "pip install 'uproot>=5.3'" in str(caught.value)


def test_versions_of_what_is_installed():
    assert compat.major("torch") == int(torch.__version__.partition(".")[0])
    assert compat.major("nowhere-to-be-found") == 0


@pytest.fixture
def skinny(monkeypatch, tmp_path):
    """mlflow-skinny: no SQLAlchemy, and no store from outside."""
    for name in ("MLFLOW_TRACKING_URI", "MLFLOW_RUN_ID", "MLFLOW_EXPERIMENT_NAME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(compat, "has_sqlalchemy", lambda: False)
    return tmp_path / "data"


def test_a_training_is_tracked_in_files_without_sqlalchemy(skinny, tmp_path):
    record = prepare(tmp_path / "t", data_path=skinny, run_name="t", params={"lr": 0.1})
    assert record.tracking_uri == (skinny / "mlruns").as_uri()
    with attach(tmp_path / "t") as run:
        run.metrics({"loss": 0.5}, 1)
        run.text("a: 1", "config.yml")
        run.finish("FINISHED")
    client = connect(record.tracking_uri)
    kept = client.get_run(record.run_id)
    assert (kept.info.status, kept.data.metrics, kept.data.params) == ("FINISHED", {"loss": 0.5}, {"lr": "0.1"})
    assert [file.path for file in client.list_artifacts(record.run_id)] == ["config.yml"]
    again = prepare(tmp_path / "t", data_path=skinny, run_name="t")
    assert again.run_id == record.run_id


def test_a_store_that_is_given_wins_without_sqlalchemy(skinny, monkeypatch):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:1")
    assert store.tracking_uri(skinny) == "http://127.0.0.1:1"


def test_models_are_files_of_the_run_before_mlflow_3(monkeypatch, tmp_path):
    monkeypatch.setattr(compat, "has_logged_models", lambda: False)
    (tmp_path / "model").mkdir()
    sent = []
    client = SimpleNamespace(log_artifacts=lambda *what: sent.append(what))
    logged_model.send(client, tmp_path, "1", "run", {"name": "best_model", "step": 1})
    assert sent == [("run", str(tmp_path / "model"), "best_model")]
