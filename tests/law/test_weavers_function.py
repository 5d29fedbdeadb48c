"""The weights of weaver-core's ParT through `law run`: one step moves them by weaver's gradient, and its logits come.

Jets, weights, gradients and logits are those of `tests/models/references/weaver_part.npz`.
"""

from pathlib import Path

import numpy as np
import pytest
import torch
import yaml

from bhive_mltf.models.import_weights import weaver_key
from bhive_mltf.testing.root_files import Jets, write_tree
from bhive_mltf.training.checkpointing import checkpoint
from tests.helpers.commands import flat
from tests.models.references.weaver_part import SIZES
from tests.models.test_convert import distance, stored_gradients

STORED = Path(__file__).parents[1] / "models/references/weaver_part.npz"
FEATURES = [f"part_{i}" for i in range(SIZES["input_dim"])]
VECTORS = ["part_px", "part_py", "part_pz", "part_energy"]
LABELS = [f"is{i}" for i in range(SIZES["num_classes"])]
RATE = 100.0  # makes the step large beside the rounding of the weights
THEIRS = """
import numpy as np
import torch
from bhive_mltf.models.base import Tagger
from bhive_mltf.models.import_weights import PartFromWeaver, renamed_state
from bhive_mltf.models.part.network import PartNetwork
from bhive_mltf.models.resolve import GroupRequest

class Part(Tagger):
    classes = {classes}
    groups = (GroupRequest("cpf", columns={features}, four_vectors=True),)
    padding = "configured"

    def __init__(self, config):
        super().__init__(config)
        network = PartNetwork({input_dim}, {num_classes}, **{sizes}, dropout=0.0)
        with np.load({path!r}) as stored:
            state = {{key[6:]: torch.from_numpy(stored[key]) for key in stored.files if key.startswith("state/")}}
        network.load_state_dict(renamed_state(state))
        self.part = PartFromWeaver(network)

    def forward(self, batch):
        group = self.group_of(batch, "cpf")
        features, vectors = self.features(batch, "cpf"), self.momenta(batch, "cpf").to(self.dtype)
        return self.part(features.transpose(1, 2), vectors.transpose(1, 2), group.mask[:, None])
"""


@pytest.fixture
def stored():
    with np.load(STORED) as arrays:
        return {name: torch.from_numpy(arrays[name]) for name in arrays.files}


@pytest.fixture
def options(sandbox, stored):
    """Config, list and network of another package, in the sandbox; its jets train, and validate and test too."""
    mask = stored["mask"][:, 0].bool()
    counts = mask.sum(1).numpy()
    particles = torch.cat([stored["features"], stored["vectors"]], 1).transpose(1, 2)[mask].numpy().astype(np.float32)
    target = stored["target"].numpy()
    scalars = {"jet_pt": np.full(len(counts), 50, np.float32), "jet_eta": np.full(len(counts), 0.5, np.float32)}
    scalars |= {label: (target == i).astype(np.int32) for i, label in enumerate(LABELS)}
    lists = {"n_part": (counts, dict(zip([*FEATURES, *VECTORS], particles.T, strict=True)))}
    config = {
        "treename": "tree", "dataset": "ArrowDataset", "bins_pt": [10, 100], "bins_eta": [-1, 1],
        "processes": ["default"], "reference_flavour": LABELS[0], "truths": LABELS, "n_cpf_candidates": mask.shape[1],
        "global_features": ["jet_pt", "jet_eta"], "cpf_candidates": [*FEATURES, *VECTORS],
        "four_vectors": {"cpf": {"kind": "pxpypze", "columns": VECTORS}},
    }  # fmt: skip
    folder = sandbox.folder
    (folder / "stored.yml").write_text(yaml.safe_dump(config))
    (folder / "list.txt").write_text(f"{write_tree(folder / 'jets.root', 'tree', Jets(scalars, lists))}\n")
    classes = {f"class_{label}": (label,) for label in LABELS}
    ends = {name: SIZES[name] for name in ("input_dim", "num_classes")}
    sizes = {name: size for name, size in SIZES.items() if name not in ends}
    text = THEIRS.format(**ends, sizes=sizes, classes=classes, features=tuple(FEATURES), path=str(STORED))
    (folder / "their_part.py").write_text(text)
    return flat({
        "--config": folder / "stored.yml", "--model-name": "their_part:Part", "--training-version": "t1",
        "--dataset-version": "v1", "--filelist": folder / "list.txt",
        "--test-dataset-version": "v1", "--test-filelist": folder / "list.txt",
        "--TrainingTask-val-dataset-version": "val", "--TrainingTask-val-filelist": folder / "list.txt",
        "--TrainingTask-loss-weighting": True, "--batch-size": len(counts), "--n-threads": 0, "--tracking": False,
        "--optimizer": "SGD", "--weight-decay": 0.0, "--learning-rate": RATE, "--lr-scheduler": "batch_lin_decay",
    })  # fmt: skip


@pytest.mark.long
def test_weavers_gradient_and_logits(sandbox, options, stored):
    path = f"{sandbox.folder}:{sandbox.environment['PYTHONPATH']}"
    sandbox.run("InferenceTask", *options, PYTHONPATH=path)
    (best,) = sandbox.data_path.glob("TrainingTask/**/best_model.pt")
    state = checkpoint.read_checkpoint(best)
    weights = state["model_state_dict"]
    gradients = stored_gradients(stored, "float32/training")
    before = {key: stored[f"state/{key}"].float() for key in gradients}
    moved = {key: before[key] - weights[f"part.network.{weaver_key(key)}"].view_as(before[key]) for key in gradients}
    got, expected = (torch.cat([values.flatten() for values in each.values()]) for each in (moved, gradients))
    assert distance(got / RATE, expected) < 1e-5

    # the weights of before the step, where the training left its own
    for key in (name.removeprefix("state/") for name in stored if name.startswith("state/")):
        ours = f"part.network.{weaver_key(key)}"
        weights[ours] = stored[f"state/{key}"].to(weights[ours].dtype).view_as(weights[ours])
    checkpoint.write_checkpoint(best, state)
    (prediction,) = sandbox.data_path.glob("InferenceTask/**/prediction.npy")
    prediction.unlink()
    sandbox.run("InferenceTask", *options, PYTHONPATH=path)
    logits = torch.from_numpy(np.load(prediction))
    entries = np.load(prediction.parent / "jet_id.npy")[:, 1]
    assert distance(logits, stored["float32/evaluation/logits"][entries]) < 1e-5
