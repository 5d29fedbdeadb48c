"""More jets than fit into the budget of memory: converted and loaded all the same."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from bhive_mltf.data.ntuples.jobs import LEAST_MB

SCALE = Path(__file__).parents[2] / "benchmarks" / "scale.py"
N_JETS = 100_000
# Of a worker that loads; the imports alone take two thirds of it.
LOADING_MB = 300


@pytest.mark.nightly
def test_memory_does_not_grow_with_the_number_of_jets(tmp_path):
    command = [sys.executable, SCALE, "--scratch", tmp_path, "--jets", "10000", str(N_JETS), "--memory", str(LEAST_MB)]
    answer = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True, timeout=600).stdout
    few, many = json.loads(answer.splitlines()[-1])["scale"]
    assert (few["jets"], many["jets"]) == (10_000, N_JETS)
    numbers = 21 * 4 * 45  # bytes of the candidates of a jet, in the mean
    assert N_JETS * numbers > LEAST_MB * 1e6, "all jets together would fit: the test says nothing"
    assert many["convert_mb"] < LEAST_MB
    assert many["load_mb"] < LOADING_MB
    assert many["load_mb"] < few["load_mb"] + 30
