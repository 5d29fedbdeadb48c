"""A training done once more with nothing of this checkout or environment."""

import subprocess

import pytest

from bhive_mltf.tracking.history import snapshot
from bhive_mltf.training.provenance import reproduce
from tests.training.test_reproduce import outputs  # noqa: F401 - a fixture


@pytest.mark.nightly
def test_a_fresh_clone_and_environment_give_equal_weights(outputs, tmp_path):  # noqa: F811
    _, directory = outputs
    run = snapshot.of_directory(directory)
    outcome = reproduce.reproduce(reproduce.Request(run, tmp_path), lambda _: None)
    assert outcome.is_equal
    commit = subprocess.run(
        ["git", "-C", tmp_path / reproduce.CODE, "rev-parse", "HEAD"], capture_output=True, text=True, check=True
    ).stdout.strip()
    assert commit == run.facts["git"]["commit"]
    again = snapshot.of_directory(tmp_path / reproduce.TRAINING)
    assert again.facts["git"]["checkout"] == str(tmp_path / reproduce.CODE)
    assert again.facts["machine"]["executable"].startswith(str(tmp_path / reproduce.ENVIRONMENT))
