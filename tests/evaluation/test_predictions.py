import logging

import numpy as np
import pytest
import torch

from bhive_mltf.errors import DataError
from bhive_mltf.evaluation import predictions
from bhive_mltf.evaluation.predictions import loss_and_accuracy, predict
from bhive_mltf.interface import Batch, GroupBatch
from bhive_mltf.training import transfer
from bhive_mltf.training.transfer import DeviceLane


class Linear(torch.nn.Module):
    """Three outputs from the columns of `global`, with a dropout that must be off."""

    def __init__(self):
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        self.layer = torch.nn.Linear(2, 3, bias=False)
        self.dropout = torch.nn.Dropout(0.5)
        with torch.no_grad():
            self.layer.weight.copy_(torch.randn(3, 2, generator=generator))

    def forward(self, batch):
        assert not torch.is_grad_enabled()
        return self.dropout(self.layer(batch.groups["global"].features[:, 0]))


def make_jets(n_jets, seed=0):
    """Jets of three files in a random stored order."""
    rng = np.random.default_rng(seed)
    ids = np.stack([np.repeat([0, 1, 2], [n_jets // 2, n_jets // 4, n_jets - n_jets // 2 - n_jets // 4]),
                    rng.permutation(10 * n_jets)[:n_jets]], axis=1)  # fmt: skip
    return {
        "features": rng.normal(size=(n_jets, 1, 2)).astype(np.float32),
        "target": rng.integers(-1, 3, n_jets),
        "jet_id": rng.permutation(ids),
        "process": rng.integers(0, 2, n_jets),
        "kinematics": rng.uniform(10, 100, (n_jets, 2)).astype(np.float32),
    }


def batches(jets, size):
    for start in range(0, len(jets["target"]), size):
        part = {name: torch.from_numpy(values[start : start + size]) for name, values in jets.items()}
        features = part.pop("features")
        group = GroupBatch(features, torch.ones(features.shape[:2], dtype=torch.bool), ("jet_px", "jet_py"))
        n_jets = len(part["target"])
        yield Batch(groups={"global": group}, weight=torch.ones(n_jets), global_size=n_jets, **part)


def test_w38_each_jet_once_in_the_order_of_the_files():
    jets = make_jets(101)
    model = Linear()
    result = predict(model, batches(jets, 16), "cpu", 101)
    order = np.lexsort((jets["jet_id"][:, 1], jets["jet_id"][:, 0]))
    np.testing.assert_array_equal(result.jet_id, jets["jet_id"][order])
    assert [tuple(row) for row in result.jet_id] == sorted(map(tuple, jets["jet_id"]))
    with torch.no_grad():
        expected = model.layer(torch.from_numpy(jets["features"][order, 0])).numpy()
    np.testing.assert_allclose(result.logits, expected, rtol=1e-6, atol=1e-6)
    for name in ("process", "kinematics"):
        np.testing.assert_array_equal(getattr(result, name), jets[name][order])
    np.testing.assert_array_equal(result.truth, jets["target"][order])


def test_w38_neither_batch_size_nor_stored_order_matter():
    jets = make_jets(50)
    shuffled = {name: values[np.random.default_rng(5).permutation(50)] for name, values in jets.items()}
    first = predict(Linear(), batches(jets, 7), "cpu", 50)
    second = predict(Linear(), batches(shuffled, 50), "cpu", 50)
    np.testing.assert_array_equal(first.truth, second.truth)
    np.testing.assert_allclose(first.logits, second.logits, rtol=1e-6, atol=1e-6)
    assert first.loss == pytest.approx(second.loss, rel=1e-6)
    assert first.accuracy == second.accuracy


@pytest.mark.parametrize("attacked", [False, True])
def test_no_product_is_in_tf32_and_the_flags_come_back(monkeypatch, attacked):
    """Torch itself has it on in cuDNN, and a caller may have it on everywhere."""
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", True)
    before = torch.get_float32_matmul_precision()
    seen = []

    class Watched(Linear):
        def forward(self, batch):
            seen.append((torch.get_float32_matmul_precision(), torch.backends.cudnn.allow_tf32))
            return super().forward(batch)

    try:
        torch.set_float32_matmul_precision("high")
        predict(Watched(), batches(make_jets(8), 4), "cpu", 8, attack=(lambda batch: batch) if attacked else None)
        with pytest.raises(DataError):
            predict(Watched(), batches(make_jets(8), 4), "cpu", 5)
        after = torch.get_float32_matmul_precision(), torch.backends.cudnn.allow_tf32
    finally:
        torch.set_float32_matmul_precision(before)
    assert set(seen) == {("highest", False)}
    assert after == ("high", True)


def test_w38_a_jet_that_comes_twice_is_refused():
    jets = make_jets(20)
    jets["jet_id"][3] = jets["jet_id"][7]
    with pytest.raises(DataError, match="predicted more than once"):
        predict(Linear(), batches(jets, 8), "cpu", 20)


@pytest.mark.parametrize("n_jets", [19, 21, 0])
def test_a_wrong_number_of_jets_is_refused(n_jets):
    with pytest.raises(DataError):
        predict(Linear(), batches(make_jets(20), 8), "cpu", n_jets)


def test_w37_kinematics_are_pt_and_eta_not_the_first_two_inputs():
    jets = make_jets(30)
    result = predict(Linear(), batches(jets, 8), "cpu", 30, input_order=False)
    np.testing.assert_array_equal(result.kinematics, jets["kinematics"])
    assert not np.isclose(result.kinematics, jets["features"][:, 0]).any()


def test_jets_of_no_class_are_predicted_but_not_counted():
    jets = make_jets(200)
    result = predict(Linear(), batches(jets, 64), "cpu", 200)
    known = result.truth >= 0
    assert not known.all()
    logits = torch.from_numpy(result.logits[known]).double()
    expected = torch.nn.functional.cross_entropy(logits, torch.from_numpy(result.truth[known]))
    assert result.loss == pytest.approx(expected.item(), rel=1e-12)
    assert result.accuracy == (result.logits[known].argmax(axis=1) == result.truth[known]).mean()
    assert all(np.isnan(loss_and_accuracy(result.logits, np.full(200, -1))))


def test_model_is_left_in_its_mode():
    model = Linear().train()
    result = predict(model, batches(make_jets(20), 8), "cpu", 20)
    assert model.training
    assert result.seconds > 0


def test_without_ids_the_stored_order_is_kept():
    jets = make_jets(20)
    result = predict(Linear(), batches(jets, 8), "cpu", 20, input_order=False)
    np.testing.assert_array_equal(result.jet_id, jets["jet_id"])


def test_outputs_that_are_not_finite_are_reported(caplog):
    jets = make_jets(20)
    jets["features"][4] = np.nan
    with caplog.at_level(logging.WARNING):
        result = predict(Linear(), batches(jets, 8), "cpu", 20)
    assert "for 1 of 20 jets" in caplog.text
    assert np.isnan(result.logits).any()


def test_no_autocast_even_inside_one():
    with torch.autocast("cpu", dtype=torch.bfloat16):
        result = predict(Linear(), batches(make_jets(20), 8), "cpu", 20)
    expected = predict(Linear(), batches(make_jets(20), 8), "cpu", 20)
    np.testing.assert_array_equal(result.logits, expected.logits)


def test_predictions_come_from_a_gpu_many_batches_at_once(monkeypatch):
    """A lane of torch's CPU stands in for one: copies ahead, columns of jets beside their predictions."""
    jets, asked = make_jets(101), []
    expected = predict(Linear(), batches(jets, 16), "cpu", 101)
    monkeypatch.setattr(predictions, "_at_once", lambda device: asked.append(device) or 3)
    monkeypatch.setattr(transfer, "lane_of", lambda device: DeviceLane(torch.cpu, device))
    found = predict(Linear(), batches(jets, 16), torch.device("cpu"), 101)
    assert asked == [torch.device("cpu")]
    for name in predictions.PER_JET:
        np.testing.assert_array_equal(getattr(found, name), getattr(expected, name))
