import shlex
import subprocess
import sys

import pytest

from bhive_mltf.tracking import environment


def git(folder, *arguments):
    subprocess.run(["git", "-C", folder, "-c", "user.name=x", "-c", "user.email=x@x", *arguments], check=True)


def test_git_state(tmp_path, monkeypatch):
    assert environment.git_state(tmp_path) == {}
    assert environment.git_state(tmp_path / "missing") == {}
    git(tmp_path, "init", "-q", "-b", "main")
    assert environment.git_state(tmp_path) == {}
    (tmp_path / "a").write_text("a")
    git(tmp_path, "add", "a")
    git(tmp_path, "commit", "-q", "-m", "a")
    state = environment.git_state(tmp_path)
    assert len(state["commit"]) == 40
    assert (state["branch"], state["dirty"]) == ("main", False)
    (tmp_path / "b").write_text("b")
    assert environment.git_state(tmp_path)["dirty"] is True
    # an environment inside a checkout that git does not follow is no part of it
    (tmp_path / "site-packages").mkdir()
    assert environment.git_state(tmp_path / "site-packages") == {}
    monkeypatch.setenv("PATH", "")
    assert environment.git_state(tmp_path) == {}


def test_facts_and_tags():
    facts = environment.facts(with_torch=True)
    assert facts["machine"]["python"] == sys.version.split()[0]
    assert facts["packages"]["torch"].partition("+")[0] == facts["torch"]["torch"].partition("+")[0]
    assert "not_a_package" not in environment.packages(["not_a_package"])
    assert facts["torch"]["threads"] >= 1
    assert shlex.split(facts["command"]) == sys.orig_argv
    tags = environment.tags(facts)
    assert tags["bhive_mltf.version.torch"].partition("+")[0] == facts["torch"]["torch"].partition("+")[0]
    assert tags["bhive_mltf.command"] == facts["command"]
    assert all(isinstance(value, str) and value for value in tags.values())


def test_facts_without_torch_import_nothing_heavy():
    code = "from bhive_mltf.tracking import environment; environment.facts(); import sys; print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "False\n"


@pytest.mark.parametrize("topics", [{}, {"git": {}, "machine": {}, "packages": {}}])
def test_tags_of_nothing(topics):
    assert environment.tags(topics) == {}
