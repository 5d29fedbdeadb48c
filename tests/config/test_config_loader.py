from __future__ import annotations

import pickle
import shutil
import subprocess
import sys
from pathlib import Path

import pydantic
import pytest

from bhive_mltf import config
from bhive_mltf.config import loader
from bhive_mltf.errors import ConfigError

SHIPPED = (
    "DeepJet_AK4",
    "UParT_v0_run3",
    "default",
    "hlt_run3",
    "jet_class",
    "mod_offline_run3",
    "offline_run3",
    "part_fp16_run3",
    "part_run3",
    "part_run3_lt",
    "part_run3_lt_fp16",
)


@pytest.fixture(autouse=True)
def _no_upstream(monkeypatch):
    monkeypatch.delenv("B_HIVE_DIR", raising=False)


def test_available():
    assert config.available() == SHIPPED


@pytest.mark.parametrize("name", ["mine.yml", "mine.yaml"])
def test_path(write, base, name, monkeypatch, tmp_path):
    path = write(base, name)
    loaded = config.load(path)
    assert (loaded.name, loaded.source) == ("mine", path)
    monkeypatch.chdir(tmp_path)
    assert config.load(name) == loaded
    assert config.load(f"./{name}").digest == loaded.digest
    monkeypatch.setenv("WHERE", str(tmp_path))
    assert config.load(f"$WHERE/{name}") == loaded


def test_path_without_suffix(write, base):
    assert config.load(write(base, "sub/mine")).name == "mine"


def test_upstream_folder_by_name(write, base, monkeypatch, tmp_path):
    write(base, "config/theirs.yml")
    monkeypatch.setenv("B_HIVE_DIR", str(tmp_path))
    assert config.load("theirs").treename == "tree"
    assert config.load("theirs.yml").treename == "tree"
    assert "theirs" in config.available()


def test_d08_a_name_means_the_file_of_another_checkout(write, base, monkeypatch, tmp_path):
    write(base, "config/hlt_run3.yml")
    monkeypatch.setenv("B_HIVE_DIR", str(tmp_path))
    loaded = config.load("hlt_run3")
    assert loaded.treename == "tree"
    assert loaded.warnings == (f"config hlt_run3: {loaded.source} of the checkout in B_HIVE_DIR is taken",)
    [said] = config.load("jet_class").warnings
    assert said.endswith(f"configs/jet_class.yml is taken, since {tmp_path}/config has none of this name")
    assert config.load(write(base)).warnings == ()


def test_d08_without_another_checkout_nothing_is_said(monkeypatch):
    monkeypatch.setenv("B_HIVE_DIR", str(Path(config.__file__).parents[2]))
    assert config.load("hlt_run3").warnings == ()


def test_default_of_the_same_folder_comes_before_ours(write, base):
    del base["processes"]
    path = write(base)
    assert config.load(path).data_precision == "float32"
    assert config.load(path).dataset == "LZ4Dataset"
    write({"data_precision": "float16", "processes": ["A"], "bins_pt": [0, 1]}, "default.yml")
    loaded = config.load(path)
    assert (loaded.data_precision, loaded.processes, loaded.bins_pt) == ("float16", ("A",), (10, 50, 100))


def test_the_merge_is_shallow_and_null_counts_as_absent(write, base):
    write({"TT": {"pt_min": 3}, "QCD": {"pt_min": 1}}, "default.yml")
    loaded = config.load(write(base | {"TT": {"pt_max": 9}, "QCD": None}))
    assert loaded.process_cuts["TT"] == config.ProcessCuts(pt_max=9)
    assert loaded.process_cuts["QCD"] == config.ProcessCuts(pt_min=1)


def test_an_error_names_the_file_that_the_key_stands_in(write, base):
    default = write({"data_precision": "float8"}, "default.yml")
    with pytest.raises(ConfigError, match=f"config {default}, key data_precision"):
        config.load(write(base))


def test_without_any_default(write, base, monkeypatch):
    """As an installed library: the code's own defaults hold."""
    monkeypatch.setattr(loader, "own_folder", lambda: None)
    assert config.load(write(base)).data_precision == "float32"
    with pytest.raises(ConfigError, match=r"no config 'hlt_run3' in no folder \(B_HIVE_DIR is not set\)"):
        config.load("hlt_run3")


def test_default_alone():
    loaded = config.load("default")
    assert (loaded.treename, loaded.groups, loaded.processes) == ("", (), ("default",))
    assert len(loaded.bins_pt) == 20
    assert loaded.branches == ()
    with pytest.raises(ConfigError, match="names no tree: it is the base of the others; choose one of DeepJet_AK4"):
        config.require_complete(loaded)
    config.require_complete(config.load("jet_class"))


def test_a_default_that_names_a_tree_must_be_complete(write):
    with pytest.raises(ConfigError, match="the key bins_pt is missing"):
        config.load(write({"treename": "tree"}, "default.yml"))


def test_w12_missing_config_is_an_error(monkeypatch, tmp_path):
    monkeypatch.setenv("B_HIVE_DIR", str(tmp_path))
    with pytest.raises(ConfigError) as caught:
        config.load("hlt_run2")
    message = str(caught.value)
    assert "there is no config 'hlt_run2'" in message
    assert f"in {tmp_path}/config and " in message
    assert "configs; nearest: hlt_run3" in message


@pytest.mark.parametrize(
    "name", ["", "  ", ".", "..", "/", "a/b", "./x.yml", "nowhere.yml", "configs/", "~/nowhere.yml"]
)
def test_no_such_file(name):
    with pytest.raises(ConfigError, match="there is no config"):
        config.load(name)


@pytest.mark.parametrize(
    ("text", "part"),
    [
        ("", "the file is empty"),
        ("# nothing\n", "the file is empty"),
        ("- a\n- b\n", "['a', 'b'] is not a mapping"),
        ("a: 1\nb: [1, 2\n", "not valid YAML"),
        ("treename: a\nbins_pt: [1]\ntreename: b\n", "line 3: not valid YAML: the key treename stands twice"),
        ("TT: {pt_min: 1, pt_min: 2}\n", "line 1: not valid YAML: the key pt_min stands twice"),
        ("? [a]\n: 1\n", "not valid YAML"),
        ("a: !!python/object/apply:os.getcwd []\n", "not valid YAML"),
        ("a: \x01\n", "not valid YAML"),
        ("a: 2001-99-99\n", "not valid YAML"),
        ("a: " + "[" * 3000 + "\n", "not valid YAML"),
    ],
)
def test_broken_file(write, text, part):
    path = write(text)
    with pytest.raises(ConfigError) as caught:
        config.load(path)
    assert str(caught.value).startswith(f"config {path}")
    assert part in str(caught.value)
    assert "\n" not in str(caught.value)


def test_not_text(tmp_path):
    (tmp_path / "binary.yml").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(ConfigError, match="not valid YAML"):
        config.load(str(tmp_path / "binary.yml"))


def test_not_readable(write, base, monkeypatch):
    def refuse(*_, **__):
        raise PermissionError(13, "Permission denied")

    path = write(base)
    monkeypatch.setattr(Path, "read_bytes", refuse)
    with pytest.raises(ConfigError, match="mine.yml: cannot be read: Permission denied"):
        config.load(path)


def test_aliases_that_explode_are_shown_short(write, base):
    lines = ["a0: &a0 [x, x, x, x, x, x, x, x, x, x]"]
    lines += [f"a{k}: &a{k} [{', '.join([f'*a{k - 1}'] * 10)}]" for k in range(1, 12)]
    lines += [f"{key}: {value}" for key, value in base.items() if key != "truths"]
    text = "\n".join(lines)
    for use in ("truths: *a11", "truths: {isB: *a11}", "four_vectors: {cpf: {kind: *a11, columns: *a11}}", "TT: *a11"):
        with pytest.raises(ConfigError) as caught:
            config.load(write(f"{text}\n{use}\n"))
        assert len(str(caught.value)) < 2000


def test_anchors_and_merge_keys_are_yaml(write, base):
    text = "TT: &cuts {pt_min: 10, pt_max: 20}\nQCD: {<<: *cuts, pt_max: 30}\n"
    loaded = config.load(write(text + "".join(f"{key}: {value}\n" for key, value in base.items())))
    assert loaded.process_cuts["QCD"] == config.ProcessCuts(pt_min=10, pt_max=30)


@pytest.mark.parametrize("name", SHIPPED)
def test_round_trips(name):
    loaded = config.load(name)
    assert config.Config.model_validate_json(loaded.model_dump_json()) == loaded
    assert pickle.loads(pickle.dumps(loaded)) == loaded
    with pytest.raises(pydantic.ValidationError):
        loaded.treename = "other"


def test_a_checkout_elsewhere_has_its_own_configs(tmp_path):
    """Names are looked up beside the package, whatever the working directory."""
    root = Path(config.__file__).parents[2]
    shutil.copytree(root / "bhive_mltf", tmp_path / "bhive_mltf", ignore=shutil.ignore_patterns("__pycache__"))
    (tmp_path / "configs").mkdir()
    (tmp_path / "configs" / "default.yml").write_text("processes: [X]\n")
    code = "from bhive_mltf import config; c = config.load('default'); print(c.processes[0], c.source)"
    run = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=True)
    assert run.stdout.split() == ["X", str(tmp_path / "configs" / "default.yml")]


def test_import_is_light():
    heavy = ["torch", "mlflow", "uproot", "awkward", "pyarrow", "pandas", "matplotlib", "sklearn", "law", "luigi"]
    code = f"import sys, bhive_mltf.config; print([m for m in {heavy} if m in sys.modules])"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout.strip() == "[]"
