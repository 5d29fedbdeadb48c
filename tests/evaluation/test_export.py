"""Exported models: the padded function, the ONNX file, the description, the scorer."""

import json
import os
import subprocess
import sys
import venv
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from bhive_mltf import config as configs
from bhive_mltf.config.expressions.expression import Expression
from bhive_mltf.data.loader.loader import BatchLoader
from bhive_mltf.errors import ModelError
from bhive_mltf.evaluation.export import onnx_file, preprocess, pyfunc
from bhive_mltf.evaluation.export.padded import ExportedModel, ports
from bhive_mltf.evaluation.export.scorer import Scorer, node
from bhive_mltf.models import registry
from bhive_mltf.models.base import Outputs
from bhive_mltf.testing.jets import write_btag
from tests.helpers.building import build
from tests.helpers.model_factory import CONFIGS, jets, small

COUNTS = [3, 5, 0, 1, 2, 9]


def trained(name):
    """A small model whose norms are not those of the first step."""
    model = small(name).train()
    with torch.no_grad():
        for seed in (1, 2):
            model(jets(model, COUNTS, seed=seed))
    return model.eval()


def inputs(exported, batch, extra=0):
    """Arrays of a batch, with more padding."""
    found = []
    for port, array in zip(exported.ports, onnx_file.arrays(exported.ports, batch).values(), strict=True):
        tensor = torch.from_numpy(array)
        if port.what != "n" and port.group != "global":
            tensor = torch.nn.functional.pad(tensor, (0, 0, 0, extra))
        found.append(tensor)
    return found


def test_the_padded_function_is_the_model(name):
    model = trained(name)
    exported = ExportedModel(model)
    for counts, extra in ((COUNTS, 0), (COUNTS, 4), ([0, 0], 2), ([1], 0), ([4] * 3, 1)):
        batch = jets(model, counts)
        with torch.no_grad():
            expected, found = model(batch), exported(*inputs(exported, batch, extra))
        found = found if isinstance(found, tuple) else (found,)
        logits = expected.logits if isinstance(expected, Outputs) else expected
        torch.testing.assert_close(found[0], logits.softmax(1), rtol=0, atol=1e-5)
        if isinstance(expected, Outputs):
            torch.testing.assert_close(found[1], expected.regression, rtol=1e-4, atol=1e-4)


def pytest_generate_tests(metafunc):
    if "name" in metafunc.fixturenames:
        metafunc.parametrize("name", sorted(CONFIGS))


def test_the_padded_function_of_upstream_checkpoints():
    model = small("ParticleTransformerHLT", padding_keys="upstream").eval()
    exported = ExportedModel(model)
    batch = jets(model, COUNTS)
    short = [tensor[:, :9] if tensor.dim() == 3 else tensor for tensor in inputs(exported, batch)]
    with torch.no_grad():
        for arrays in (inputs(exported, batch), short):
            torch.testing.assert_close(exported(*arrays), model(batch).softmax(1), rtol=0, atol=1e-5)


@pytest.mark.parametrize("version", [1, 2])
def test_neighbours_of_exported_particle_net_are_the_models(version):
    """Version 2 takes the first ones before the norm of the tokens, which here weighs them otherwise."""
    model = small("ParticleNet_InPro", function_version=version).eval()
    with torch.no_grad():
        model.norm_in.weight.copy_(torch.logspace(-3, 3, len(model.norm_in.weight)))
        batch = jets(model, COUNTS)
        exported = ExportedModel(model)
        torch.testing.assert_close(exported(*inputs(exported, batch)), model(batch).softmax(1), rtol=0, atol=1e-5)


def test_the_exported_model_is_a_copy():
    model = small("ParticleTransformerHLT").train()
    before = {key: value.clone() for key, value in model.state_dict().items()}
    ExportedModel(model)
    assert model.training
    assert all(parameter.requires_grad for parameter in model.parameters())
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())
    assert "lay_out" not in vars(model)


def test_ports_are_what_the_model_reads():
    model = small("GlobalParticleTransformerHLT")
    assert [port.name for port in ports(model)] == [
        "global_features",
        "cpf_features",
        "cpf_four_vectors",
        "cpf_n",
        "vtx_features",
        "vtx_four_vectors",
        "vtx_n",
    ]
    assert [port.name for port in ports(small("DeepJetHLT"))] == ["cpf_features", "vtx_features"]


EXPRESSIONS = [
    "log(a + 1) * np.pi",
    "where(i > 2, a / i, -a)",
    "clip(a, a_min=0.2, a_max=1.5) % 0.3",
    "nan_to_num(1 / (a - a), posinf=7.0)",
    "i ** -1 + (a > 0.5) + ~(i == 1)",
    "arctan2(a, i) and a",
]


@pytest.mark.parametrize("text", EXPRESSIONS)
def test_expressions_survive_json(text):
    expression = Expression.parse(text)
    again = node(json.loads(json.dumps(preprocess.tree(expression.root))))
    assert again == expression.root


def test_the_scorer_package_imports_nothing_of_ours(tmp_path):
    preprocess.write_scorer(tmp_path)
    code = (
        "import sys; sys.path.insert(0, sys.argv[1]); import onnx_scorer;"
        "print([m for m in sys.modules if m.partition('.')[0] in ('bhive_mltf', 'torch', 'uproot', 'law')])"
    )
    done = subprocess.run([sys.executable, "-I", "-c", code, tmp_path], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


@pytest.fixture(scope="module")
def sample(tmp_path_factory):
    """A config, a ROOT file, and a data set made of it."""
    folder = tmp_path_factory.mktemp("jets")
    config = configs.load("offline_run3")
    path = write_btag(folder / "TT" / "jets.root", 120, 3, "TT")
    build(config, [str(path)], folder / "dataset", chunk_size=70)
    return config, path, folder / "dataset"


def batches(dataset, config, model, size=32):
    from bhive_mltf.data.dataset import open_dataset

    opened = open_dataset(dataset, config, dataset)
    loader = BatchLoader(
        opened,
        range(len(opened)),
        model.inputs,
        mode="inference",
        batch_size=size,
        n_threads=0,
        seed=1,
        weighted=False,
        unmatched="drop",
        config=config,
    )
    yield from loader.epoch(0)
    loader.close()


class Session:
    """Stands in for onnxruntime: the names of the inputs."""

    def __init__(self, names):
        self.names = names

    def get_inputs(self):
        return [type("Port", (), {"name": name}) for name in self.names]


def test_the_scorer_makes_the_inputs_of_the_loader(sample, tmp_path):
    config, path, dataset = sample
    model = registry.create("DeepJet", config).eval()
    description = preprocess.describe(model, "DeepJet", config, {})
    scorer = Scorer.__new__(Scorer)
    scorer.description = json.loads(json.dumps(description))
    (arrays, finite), *more = scorer.read(path)
    assert not more
    exported = ExportedModel(model)
    n_seen = 0
    for batch in batches(dataset, config, model):
        wanted = onnx_file.arrays(exported.ports, batch)
        for row, entry in enumerate(batch.jet_id[:, 1].tolist()):
            assert finite[entry]
            for name, values in wanted.items():
                own = arrays[name][entry]
                slots = min(len(own), len(values[row]))
                np.testing.assert_array_equal(own[:slots], values[row][:slots])
                assert not own[slots:].any()
                assert not values[row][slots:].any()
            n_seen += 1
    assert n_seen > 50


def test_no_export_without_onnx(monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "onnx", None)
    with pytest.raises(ModelError, match=r"bhive_mltf\[export\]"):
        onnx_file.write(small("DeepJetHLT"), tmp_path / "model.onnx")


def test_a_foreign_model_is_refused():
    model = small("ParticleTransformerHLT")
    type(model)
    model.laid_out = False
    with pytest.raises(ModelError, match="padded form is not known"):
        ExportedModel(model)


@pytest.mark.long
def test_onnx_equals_the_model(name, tmp_path):
    pytest.importorskip("onnx")
    pytest.importorskip("onnxruntime")
    model = trained(name)
    onnx_file.write(model, tmp_path / "model.onnx")
    several = [jets(model, counts, seed=seed) for seed in range(20) for counts in (COUNTS, [7] * 9, [0, 1], [12, 3])]
    several = [replace(batch, groups=batch.groups) for batch in several]
    found = onnx_file.compare(model, tmp_path / "model.onnx", several)
    assert found.n_jets == 20 * (6 + 9 + 2 + 2)
    assert found.largest <= 1e-4


@pytest.mark.long
def test_a_different_file_is_refused(tmp_path):
    pytest.importorskip("onnxruntime")
    pytest.importorskip("onnx")
    onnx_file.write(trained("DeepJetHLT"), tmp_path / "model.onnx")
    other = small("DeepJetHLT", batch_norm_momentum=0.1)
    with torch.no_grad():
        other.head.bias += torch.arange(len(other.head.bias))
    with pytest.raises(ModelError, match="differs from the model"):
        onnx_file.compare(other, tmp_path / "model.onnx", [jets(other, COUNTS)])


def exported(config, folder):
    """DeepJet, and what the export writes of it."""
    model = registry.create("DeepJet", config).eval()
    folder.mkdir()
    onnx_file.write(model, folder / preprocess.MODEL_NAME)
    description = preprocess.describe(model, "DeepJet", config, {})
    (folder / preprocess.FILE_NAME).write_text(json.dumps(description))
    preprocess.write_scorer(folder)
    pyfunc.save(folder, folder / "mlflow_model")
    return model, description


@pytest.mark.nightly
@pytest.mark.filterwarnings("ignore")
def test_mlflow_predicts_in_an_environment_of_the_model(sample, tmp_path):
    """With nothing installed but what the model asks for."""
    pytest.importorskip("onnxruntime")
    pytest.importorskip("onnx")
    config, path, _ = sample
    folder = tmp_path / "export"
    _, description = exported(config, folder)
    programs = tmp_path / "environment" / "bin"
    venv.create(programs.parent, with_pip=True)
    environment = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "VIRTUAL_ENV")}
    environment |= {"PATH": f"{programs}{os.pathsep}{os.environ['PATH']}", "MLFLOW_DISABLE_TELEMETRY": "true"}

    def run(*command):
        command = [programs / command[0], *command[1:]]
        done = subprocess.run(command, env=environment, cwd=tmp_path, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    run("pip", "install", "--quiet", "--requirement", folder / "mlflow_model" / "requirements.txt")
    names = {package["name"].lower() for package in json.loads(run("pip", "list", "--format=json"))}
    assert {"torch", "bhive-mltf", "bhive_mltf", "law"} & names == set()
    request = {"dataframe_split": {"columns": ["file"], "data": [[str(path)]]}}
    (tmp_path / "request.json").write_text(json.dumps(request))
    model = ("--model-uri", folder / "mlflow_model", "--env-manager", "local")
    run("mlflow", "models", "predict", *model, "-i", "request.json", "-t", "json", "-o", "scores.json")
    rows = json.loads((tmp_path / "scores.json").read_text())["predictions"]
    found = np.array([[row[name] for name in description["classes"]] for row in rows])
    np.testing.assert_allclose(found, Scorer(folder).score(path), atol=1e-6)


@pytest.mark.long
@pytest.mark.filterwarnings("ignore")
def test_example_and_mlflow_model_score_a_root_file(sample, tmp_path):
    pytest.importorskip("onnxruntime")
    pytest.importorskip("onnx")
    import mlflow

    config, path, dataset = sample
    folder = tmp_path / "export"
    model, description = exported(config, folder)
    scores = Scorer(folder).score(path)
    assert scores.shape == (120, len(description["classes"]))
    for batch in batches(dataset, config, model):
        with torch.no_grad():
            expected = model(batch).softmax(1).numpy()
        np.testing.assert_allclose(scores[batch.jet_id[:, 1]], expected, rtol=0, atol=1e-4)
    script = Path(__file__).parents[2] / "examples" / "onnx_inference.py"
    # a Python that has none of them: onnxruntime, uproot and numpy are all it takes
    absent = ("bhive_mltf", "law", "luigi", "mlflow", "onnx", "pandas", "pyarrow", "scipy", "torch", "yaml")
    (tmp_path / "sitecustomize.py").write_text(f"import sys\nsys.modules.update(dict.fromkeys({absent}))\n")
    done = subprocess.run(
        [sys.executable, script, folder, path],
        capture_output=True,
        text=True,
        check=True,
        env={**os.environ, "PYTHONPATH": str(tmp_path)},
    )
    lines = done.stdout.splitlines()
    assert lines[0].split(",")[:3] == ["file", "entry", description["classes"][0]]
    assert len(lines) == 121
    loaded = mlflow.pyfunc.load_model(str(folder / "mlflow_model"))
    import pandas as pd

    table = loaded.predict(pd.DataFrame({"file": [str(path)]}))
    np.testing.assert_allclose(table[description["classes"]].to_numpy(), scores, atol=1e-6)
    some = loaded.predict(pd.DataFrame({"file": [str(path)] * 2, "start": [7, 110], "stop": [9, 112]}))
    assert some["entry"].tolist() == [7, 8, 110, 111]
    np.testing.assert_allclose(some[description["classes"]].to_numpy(), scores[some["entry"]], atol=1e-6)
    assert loaded.metadata.signature.inputs.input_names() == ["file", "start", "stop"]
    assert loaded.metadata.signature.inputs.required_input_names() == ["file"]
    assert loaded.metadata.load_input_example(str(folder / "mlflow_model")).columns.tolist() == ["file"]
