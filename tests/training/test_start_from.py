"""`start_from`: a training that begins with the weights of another one, or of B-Hive."""

import pytest
import torch

from bhive_mltf.errors import CheckpointError
from bhive_mltf.files.records import Record, compare
from bhive_mltf.models import registry
from bhive_mltf.models.upstream_weights import convert
from bhive_mltf.ranks.distributed import World
from bhive_mltf.training.checkpointing import checkpoint, start_from
from bhive_mltf.training.engine import train
from bhive_mltf.training.launch import settled
from tests.helpers.model_factory import small
from tests.helpers.standin import Tiny, build, plan


def weights(directory, number):
    return checkpoint.read_checkpoint(checkpoint.epoch_path(directory, number))["model_state_dict"]


def run(directory, **values):
    made = plan(directory, **values)
    directory.mkdir(exist_ok=True)
    train(made, World(), build)
    return made


@pytest.fixture
def first(tmp_path):
    """A training of one epoch."""
    run(tmp_path / "first", epochs=1)
    return checkpoint.epoch_path(tmp_path / "first", 0)


def test_a_training_begins_with_the_weights_of_a_file(tmp_path, first):
    still = {"optimizer": "SGD", "learning_rate": 1e-30, "epochs": 1}
    run(tmp_path / "second", start_from=str(first), **still)
    found, expected = weights(tmp_path / "second", 0), weights(tmp_path / "first", 0)
    assert all(
        torch.equal(found[name], expected[name]) for name in found if not name.endswith(("mean", "var", "tracked"))
    )
    state = checkpoint.read_checkpoint(checkpoint.epoch_path(tmp_path / "second", 0))
    assert state["settings"]["start_from"] == str(first)
    assert state["global_step"] > 0


def test_a_half_done_training_goes_on_without_the_file(tmp_path, first):
    again = {"start_from": str(first), "epochs": 1}
    run(tmp_path / "whole", **again)
    run(tmp_path / "whole", **again, extend_training=1)
    run(tmp_path / "cut", **again)
    first.unlink()
    run(tmp_path / "cut", **again, extend_training=1)
    one, two = (weights(tmp_path / name, 1) for name in ("whole", "cut"))
    assert all(torch.equal(one[name], two[name]) for name in one)


def test_a_training_that_began_otherwise_is_another_one(tmp_path, first):
    directory = first.parent
    with pytest.raises(CheckpointError, match=r"was made with settings.start_from = \"\", this training has"):
        run(directory, epochs=1, extend_training=1, start_from=str(first))


def test_checkpoints_of_earlier_versions_began_with_random_weights(tmp_path, first):
    state = checkpoint.read_checkpoint(first)
    del state["settings"]["start_from"]
    checkpoint.write_checkpoint(first, state)
    run(first.parent, epochs=1, extend_training=1)
    with pytest.raises(CheckpointError, match=r"settings.start_from"):
        run(first.parent, epochs=1, extend_training=2, start_from="x.pt")


def test_a_record_of_earlier_versions_is_held_against_start_from():
    recorded, defaults = {"batch_size": 3}, {"batch_size": 1024, "start_from": ""}
    assert compare(recorded, {"batch_size": 3, "start_from": ""}, defaults, "there") == []
    with pytest.raises(Exception, match='--start-from "", and a.pt is asked for'):
        compare(recorded, {"batch_size": 3, "start_from": "a.pt"}, defaults, "there")


def test_weights_of_another_network_are_refused(tmp_path, first):
    wide = Tiny(width=9)
    with pytest.raises(CheckpointError, match=r"another network than Tiny \(embed.weight.* of another shape\): take"):
        start_from.load(wide, "Tiny", first)
    state = Tiny().state_dict()
    state["left.weight"] = state.pop("out.bias")
    torch.save(state, tmp_path / "plain.pt")
    with pytest.raises(CheckpointError, match=r"\(left.weight left over; out.bias missing\)"):
        start_from.load(Tiny(), "Tiny", tmp_path / "plain.pt")


def test_weights_of_b_hives_classes_are_taken(tmp_path):
    model, other = small("ParticleTransformer2"), small("ParticleTransformer2")
    with torch.no_grad():
        model.class_token.fill_(3)
    theirs = convert.to_upstream("ParticleTransformer2", model.state_dict())
    torch.save({"model_state_dict": {f"module.{name}": value for name, value in theirs.items()}}, tmp_path / "a.pt")
    start_from.load(other, "ParticleTransformer2", tmp_path / "a.pt")
    assert torch.equal(other.class_token, model.class_token)
    with pytest.raises(CheckpointError, match=r"a.pt: these weights are not those of B-Hive's DeepJet: .* left over"):
        start_from.load(small("DeepJet"), "DeepJet", tmp_path / "a.pt")


@pytest.mark.parametrize(("content", "expected"), [({}, 1), ({"model_function": 2}, 2)])
def test_the_version_of_the_function_is_that_of_the_weights(tmp_path, content, expected):
    torch.save({"model_state_dict": {"head.weight": torch.zeros(1)}, **content}, tmp_path / "a.pt")
    asked = plan(tmp_path / "new", model_name="DeepJetTransformer", start_from=str(tmp_path / "a.pt"))
    record = Record.new({"betas": [0.9, 0.99]})
    assert settled(asked, record).model_function == expected
    fresh = settled(asked.model_copy(update={"start_from": ""}), record)
    assert fresh.model_function == registry.entry("DeepJetTransformer").function
