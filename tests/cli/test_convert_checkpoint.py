"""`bhive-mltf convert-checkpoint`, as it is typed."""

import numpy as np
import pytest
import torch

from bhive_mltf.cli import main
from bhive_mltf.models.upstream_weights import convert
from bhive_mltf.training.checkpointing import start_from
from tests.helpers.model_factory import small


@pytest.fixture
def theirs(tmp_path):
    """A checkpoint as B-Hive writes it."""
    state = convert.to_upstream("ParticleTransformer", small("ParticleTransformer").state_dict())
    path = tmp_path / "best_model.pt"
    content = {
        "epoch": 3,
        "loss_val": np.float64(0.5),
        "scheduler_state_dict": {"gamma": 0.1},
        "optimizer_state_dict": {},
    }
    torch.save({**content, "model_state_dict": state}, path)
    return path


def test_there_and_back(theirs, tmp_path, capsys):
    assert main(["convert-checkpoint", str(theirs)]) == 0
    said = capsys.readouterr().out
    ours = tmp_path / "best_model.bhive-mltf.pt"
    assert f"{ours}: " in said
    assert '--model-kwargs \'{"padding_keys": "upstream"}\'' in said
    model = small("ParticleTransformer", padding_keys="upstream")
    start_from.load(model, "ParticleTransformer", ours)
    found = torch.load(ours, weights_only=True)
    assert (found["epoch"], found["loss_val"], found["model_name"]) == (3, 0.5, "ParticleTransformer")
    back = tmp_path / "theirs.pt"
    assert main(["convert-checkpoint", str(ours), "--to", "upstream", "--output", str(back)]) == 0
    before, after = (start_from.read(path).state for path in (theirs, back))
    assert list(before) == list(after)
    assert all(torch.equal(before[name], after[name]) for name in before)


def refused(capsys, *arguments):
    assert main(["convert-checkpoint", *map(str, arguments)]) == 1
    said = capsys.readouterr().err
    assert said.startswith("error: ")
    assert said.count("\n") == 1
    return said


def test_what_is_refused(theirs, tmp_path, capsys):
    assert "of upstream already: nothing to convert" in refused(capsys, theirs, "--to", "upstream")
    assert "not those of B-Hive's DeepJet" in refused(capsys, theirs, "--model-name", "DeepJet")
    (tmp_path / "best_model.bhive-mltf.pt").touch()
    assert "exists: remove it, or give another --output" in refused(capsys, theirs)
    assert "cannot be read" in refused(capsys, tmp_path / "none.pt")
    (tmp_path / "text.pt").write_text("no checkpoint")
    assert "cannot be read" in refused(capsys, tmp_path / "text.pt")
    torch.save({"epoch": 1}, tmp_path / "empty.pt")
    assert "holds no weights of a model" in refused(capsys, tmp_path / "empty.pt")
    assert list(tmp_path.glob("*.tmp*")) == []


class Runs:
    def __reduce__(self):
        return (print, ("code of a file was run",))


def test_no_code_of_a_file_is_run(tmp_path, capsys):
    torch.save({"model_state_dict": {"Linear.weight": torch.zeros(1)}, "x": Runs()}, tmp_path / "evil.pt")
    assert "cannot be read" in refused(capsys, tmp_path / "evil.pt")
    assert "was run" not in capsys.readouterr().out
