"""Rows of a scaling measurement, and where the time of a step is counted."""

import csv
import json
import time

import pytest
import torch

from bhive_mltf.errors import ParameterError
from bhive_mltf.training.scaling.measure import MeasuredError, StepTimer, TimedLoader
from bhive_mltf.training.scaling.table import PARTS, Row, check, table, write_rows
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

    def forward(self, batch):
        time.sleep(0.02)
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
    assert 0.08 <= found["forward"] < 0.12 + found["rest"]
    # between the last gradient and the update
    assert found["communication"] >= 0.004
    assert sum(found[part] for part in PARTS) == pytest.approx(found["total"])
    assert not model._forward_hooks
