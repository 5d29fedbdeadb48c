"""Precisions by name: what they switch, on which device, and that the record says so."""

import json

import pytest
import torch

from bhive_mltf.errors import ParameterError
from bhive_mltf.ranks.distributed import World
from bhive_mltf.training import choices
from bhive_mltf.training.engine import train
from bhive_mltf.training.monitoring.observers import Observer
from bhive_mltf.training.precision import Precision, float32_products
from bhive_mltf.training.reproducibility import FILE_NAME
from tests.helpers import standin
from tests.helpers.standin import plan

CPU, CUDA = torch.device("cpu"), torch.device("cuda")


def of(tmp_path, device, **values):
    return Precision.of(plan(tmp_path, **values), device)


@pytest.mark.parametrize(
    ("values", "device", "name", "autocast", "scaled"),
    [
        ({}, CUDA, "float32", None, False),
        ({"mixed_precision": True}, CUDA, "fp16", torch.float16, True),
        ({"mixed_precision": True}, CPU, "bf16", torch.bfloat16, False),
        ({"training_precision": "bf16"}, CUDA, "bf16", torch.bfloat16, False),
        ({"training_precision": "bf16"}, CPU, "bf16", torch.bfloat16, False),
        ({"training_precision": "fp16"}, CUDA, "fp16", torch.float16, True),
        ({"training_precision": "tf32"}, CUDA, "tf32", None, False),
        ({"training_precision": "float64"}, CUDA, "float64", None, False),
        ({"training_precision": "float16", "mixed_precision": True}, CUDA, "fp16", torch.float16, True),
    ],
)
def test_what_a_precision_switches(tmp_path, values, device, name, autocast, scaled):
    found = of(tmp_path, device, **values)
    assert (found.name, found.autocast, found.scaled) == (name, autocast, scaled)
    assert found.weights == (torch.float64 if name == "float64" else torch.float32)
    assert found.tf32 == (name == "tf32")
    assert found.half_inputs == (values.get("training_precision") == "float16")


def test_every_choice_is_a_precision(tmp_path):
    assert {of(tmp_path, CUDA, training_precision=name).name for name in choices.PRECISIONS} == set(choices.PRECISIONS)


def test_scaled_float16_needs_a_gpu(tmp_path):
    with pytest.raises(ParameterError, match="training_precision is 'fp16', which needs a GPU.*: take 'bf16'"):
        of(tmp_path, CPU, training_precision="fp16")


@pytest.mark.parametrize("name", ["tf32", "bf16", "fp16"])
def test_two_ways_to_say_the_products_are_one_too_many(tmp_path, name):
    with pytest.raises(ParameterError, match=f"mixed_precision is True beside training_precision '{name}'"):
        plan(tmp_path, training_precision=name, mixed_precision=True)


def test_products_are_in_tf32_only_inside():
    def now():
        return torch.get_float32_matmul_precision(), torch.backends.cudnn.allow_tf32

    before = now()
    with float32_products(tf32=True):
        assert now() == ("high", True)
        with float32_products():
            assert now() == ("highest", False)
    with pytest.raises(ValueError, match="stop"), float32_products():
        raise ValueError("stop")
    assert now() == before


@pytest.mark.parametrize(
    ("values", "name", "loss"),
    [({}, "float32", 0), ({"training_precision": "bf16"}, "bf16", 0.1), ({"training_precision": "tf32"}, "tf32", 1e-6)],
)
def test_a_training_records_its_precision(tmp_path, values, name, loss):
    def losses(directory, **values):
        train(plan(directory, epochs=1, **values), World(), standin.build, Observer())
        return torch.load(directory / "best_model.pt", weights_only=False)["loss_val"]

    expected = losses(tmp_path / "plain")
    assert losses(tmp_path / "other", **values) == pytest.approx(expected, rel=loss)
    record = json.loads((tmp_path / "other" / FILE_NAME).read_text())["processes"][0]
    assert record["precision"] == name
    assert record["matmul_precision"] == ("high" if name == "tf32" else "highest")
