"""Rows of a scaling measurement, and where the time of a step is counted."""

import csv
import json
import time

import pytest
import torch

from bhive_mltf.errors import ParameterError
from bhive_mltf.training.scaling.limits import Traced, ceilings
from bhive_mltf.training.scaling.measure import MeasuredError, StepTimer, TimedLoader
from bhive_mltf.training.scaling.table import PARTS, Row, check, limits, table, write_rows
from tests.helpers import standin

ROWS = [Row("weak", n, 64 * n, 900.0 * n, 0.9 * n, 0.9, 0.07, *[0.01] * 6) for n in (1, 128)]


@pytest.mark.parametrize(
    ("sizes", "batch_size", "steps", "message"),
    [((), 8, 1, "--world-sizes"), ((0, 1), 8, 1, "--world-sizes"), ((1, 1), 8, 1, "1,1"), ((1, 9), 8, 1, "9 ranks"),
     ((1, 2), 8, 0, "--steps is 0")],
)  # fmt: skip
def test_numbers_that_cannot_be_measured_are_refused(sizes, batch_size, steps, message):
    with pytest.raises(ParameterError, match=message):
        check(sizes, batch_size, steps, 1)


def test_the_table_fits_a_terminal_and_the_files_hold_all(tmp_path):
    lines = table(ROWS).splitlines()
    assert len(lines) == 4
    assert max(map(len, lines)) < 80
    write_rows(ROWS, {"cores": 2}, tmp_path)
    content = json.loads((tmp_path / "scaling.json").read_text())
    assert content["conditions"] == {"cores": 2}
    with (tmp_path / "scaling.csv").open() as file:
        assert [float(row["jets_per_s"]) for row in csv.DictReader(file)] == [900.0, 115200.0]
    assert [row["ranks"] for row in content["rows"]] == [1, 128]


class Slow(torch.nn.Module):
    """Sleeps in the forward pass."""

    def __init__(self):
        super().__init__()
        self.layer = torch.nn.Linear(3, 3)
        self.slept = []

    def forward(self, batch):
        begun = time.perf_counter()
        time.sleep(0.02)
        self.slept.append(time.perf_counter() - begun)
        return self.layer(batch.groups["global"].features[:, 0])


class Batches:
    """Two batches per epoch, each of which takes its time."""

    def n_batches(self, epoch):
        return 2

    def epoch(self, epoch, start=0):
        for number in range(start, 2):
            time.sleep(0.01)
            yield standin.batch(4, seed=number)


def test_the_time_of_a_step_is_counted_where_it_is_spent():
    model = Slow()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    timer = StepTimer(model, torch.device("cpu"))
    loader = TimedLoader(Batches(), timer, warm_up=1, steps=4)
    steps = 0
    with pytest.raises(MeasuredError):
        for batch in loader.epoch(0):
            loss = model(batch).sum()
            loss.backward()
            time.sleep(0.001)
            optimizer.step()
            steps += 1
    assert steps == 5
    timer.close()
    found = timer.result()
    assert found["loader"] >= 0.04
    # a sleep may take longer than asked for; the first step warms up
    assert sum(model.slept[1:]) <= found["forward"] < sum(model.slept[1:]) + 0.5 * found["total"]
    # between the last gradient and the update
    assert found["communication"] >= 0.004
    assert sum(found[part] for part in PARTS) == pytest.approx(found["total"])
    assert not model._forward_hooks


def test_a_step_is_looked_at_behind_those_that_warm_up():
    model, traced, steps = Slow(), Traced(), 0
    loader = TimedLoader(Batches(), StepTimer(model, torch.device("cpu")), warm_up=1, steps=1, traced=traced)
    with pytest.raises(MeasuredError):
        for batch in loader.epoch(0):
            model(batch).sum().backward()
            steps += 1
    assert steps == 4
    # of 4 jets: 3 x 3 weights, forward and backward of the weights, 2 operations each
    assert traced.cost().flops == 2 * 2 * 9


def test_bytes_are_those_that_operators_read_and_write():
    traced, values = Traced(), torch.ones(10, 100)
    with traced.over(10):
        (values + values[:, :1].expand(10, 100)).t().view(100, 10)
    assert (traced.cost().bytes, traced.cost().kernels) == ((4000 + 40 + 4000) / 10, 1)


def test_limits_are_of_the_devices_of_all_ranks():
    row = Row("weak", 2, 64, 1000.0, 1.0, 1.0, 0.07, *[0.01] * 6, 80.0, 0.7, 400.0, 35.0)
    assert row.byte_share == pytest.approx(1000 / 2 * 80e6 / 400e9)
    assert row.flop_share == pytest.approx(1000 / 2 * 0.7e9 / 35e12)
    lines = limits([row]).splitlines()
    assert max(map(len, lines)) < 80
    assert "10.0 %" in lines[-1]
    assert limits(ROWS) == ""


@pytest.mark.long
def test_ceilings_of_this_machine_are_numbers():
    found = ceilings(torch.device("cpu"))
    assert 1e8 < found.bytes < 1e13
    assert 1e8 < found.flops < 1e15
