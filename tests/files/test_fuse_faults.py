"""Random faults of a file system under construction, training and inference: the right result or one sentence.

The seeds of a trial are in its failure: `FUSE_FAULTS_SEED=N pytest -m long tests/files/test_fuse_faults.py`.
"""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.helpers import faulty_disk

REPOSITORY = Path(__file__).parents[2]
SEED = int(os.environ.get("FUSE_FAULTS_SEED", "0")) or int.from_bytes(os.urandom(3), "little")
# 200 faults in all
TRIALS = {"construction": 40, "training": 30, "inference": 30}


@pytest.mark.long
@pytest.mark.skipif(bool(faulty_disk.why_not()), reason=faulty_disk.why_not())
@pytest.mark.parametrize("mode", ["cached", "direct"])
@pytest.mark.parametrize("phase", TRIALS)
def test_a_random_fault_is_a_sentence_or_no_harm(tmp_path, phase, mode):
    command = [sys.executable, "-m", "tests.helpers.faulty_phases", phase, mode, str(tmp_path)]
    # a process of its own: a fault that kills must not end the tests
    done = subprocess.run(
        [*command, str(SEED), str(TRIALS[phase])],
        capture_output=True,
        text=True,
        cwd=REPOSITORY,
        timeout=1800,
        check=False,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    lines = [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]
    where = f"seed {SEED}, after {len(lines)} trials, exit code {done.returncode}\n{done.stderr[-3000:]}"
    assert done.returncode == 0, where
    assert len(lines) == TRIALS[phase], where
    wrong = [line for line in lines if line["wrong"]]
    assert not wrong, f"seed {SEED}:\n" + "\n".join(map(json.dumps, wrong))
    struck = [line for line in lines if line["struck"]]
    assert len(struck) >= 0.8 * len(lines), f"seed {SEED}: few faults struck"
    # both ends are seen
    assert {bool(line["refusal"]) for line in struck} == {True, False}, f"seed {SEED}"
