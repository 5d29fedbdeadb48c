"""The patches of the merge kit: changed lines only, which apply in order wherever these lines are."""

import json
import os
import re
import runpy
import subprocess
import sys
from pathlib import Path

import lz4.frame
import numpy as np
import pytest

from bhive_mltf import config as configs

KIT = Path(__file__).parents[2] / "merge"
PATCHES = sorted(KIT.glob("[0-9]-*.patch"))


def lines_of(patch, sign):
    """(file, line) of all lines with this sign, in order."""
    name = ""
    for line in patch.read_text().splitlines():
        if line.startswith("+++ b/"):
            name = line[6:]
        elif line.startswith(sign) and not line.startswith(("---", "+++")):
            yield name, line[1:]


def test_each_patch_holds_changed_lines_only_and_has_a_page():
    assert [path.name[0] for path in PATCHES] == list("012345")
    for patch in PATCHES:
        signs = {line[:1] for line in patch.read_text().splitlines()}
        assert signs == {"-", "+", "@"}
        page = patch.with_suffix(".md").read_text()
        for heading in ("## Why", "## What changes", "## How it is tested", "## What a reviewer will ask"):
            assert heading in page, (patch.name, heading)


@pytest.fixture
def tree(tmp_path):
    """Files of those lines that the patches take out of a checkout, far from where they were."""
    lines, added = {}, set()
    for patch in PATCHES:
        for name, line in lines_of(patch, "-"):
            if (name, line) not in added:
                lines.setdefault(name, []).append(line)
        added |= set(lines_of(patch, "+"))
    for name, found in lines.items():
        path = tmp_path / "tree" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        # a text, so that it compiles whatever stands around these lines
        path.write_text("\n" * 7 + "TEXT = r'''\n" + "".join(f"{line}\n" for line in found) + "'''\n")
    return tmp_path / "tree"


def test_the_patches_apply_in_order(tree):
    for patch in PATCHES:
        done = subprocess.run(
            ["git", "apply", "--unidiff-zero", "--whitespace=nowarn", str(patch)],
            cwd=tree, env={"GIT_CEILING_DIRECTORIES": str(tree.parent), "PATH": "/usr/bin:/bin"}, capture_output=True,
            text=True, check=False,
        )  # fmt: skip
        assert done.returncode == 0, (patch.name, done.stderr)
    task = (tree / "tasks/training.py").read_text()
    assert re.search(r"^class TrainingTask\(SlurmMixin, MLflowMixin, RanksMixin, Attack", task, re.MULTILINE)
    assert "tracking.log_epoch(t, " in (tree / "utils/models/base_model.py").read_text()
    assert "replicas.current().rows(" in (tree / "utils/torch/LZ4Dataset.py").read_text()


def test_check_applies_to_a_copy_and_says_what_failed(tree, tmp_path):
    before = {path: path.read_text() for path in tree.rglob("*") if path.is_file()}
    environment = {**os.environ, "TMPDIR": str(tmp_path)}
    command = [sys.executable, str(KIT / "check"), str(tree)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout.count(": applies")) == (0, 6), done.stdout
    assert before == {path: path.read_text() for path in tree.rglob("*") if path.is_file()}
    task = tree / "tasks/training.py"
    task.write_text(task.read_text().replace("model.to(self.device)", "model"))
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert "3-ranks.patch: error: patch failed: tasks/training.py" in done.stdout
    assert "4-resume" not in done.stdout


def test_the_set_of_check_is_one_of_its_config(tmp_path):
    """In upstream's environment no ROOT file can be read: the set is made of numbers."""
    path = Path(__file__).parents[2] / "configs/part_run3.yml"
    config = configs.load(str(path))
    check = runpy.run_path(str(KIT / "check"))
    check["write_set"](tmp_path, path)
    folder = tmp_path / "DatasetConstructorTask/part_run3/check"
    names = (folder / "processed_files.txt").read_text().split("\n")
    assert len(names) == len(json.loads((folder / "weights.json").read_text())["chunk_size"]) == check["FILES"]
    rows, columns = np.frombuffer(lz4.frame.decompress(Path(names[-1]).read_bytes()), np.float32)[:2]
    assert rows == check["JETS"]
    assert columns == sum(len(g.columns) * g.length for g in config.groups) + len(config.truths) + 2
