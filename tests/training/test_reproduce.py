"""A training done once more: equal bit for bit, or the difference is named."""

import json
import subprocess
import sys
from dataclasses import asdict

import pytest

from bhive_mltf import config as configs
from bhive_mltf.cli import main
from bhive_mltf.data.manifest import content_id
from bhive_mltf.errors import DataError, ParameterError
from bhive_mltf.files.records import Record
from bhive_mltf.testing.jets import write_btag
from bhive_mltf.tracking.history import snapshot
from bhive_mltf.training import launch
from bhive_mltf.training.plan import TrainingPlan
from bhive_mltf.training.provenance import inputs, lineage, reproduce
from tests.helpers.building import build


def files(folder, seed=0):
    return [str(write_btag(folder / name / "jets.root", 60, seed + n, name)) for n, name in enumerate(("TT", "QCD"))]


@pytest.fixture(scope="module")
def outputs(tmp_path_factory):
    """A folder of outputs with a training set and a tracked training."""
    folder = tmp_path_factory.mktemp("outputs")
    config = configs.load("offline_run3")
    dataset = folder / "DatasetConstructorTask" / "offline_run3" / "v1"
    build(config, files(folder / "ntuples"), dataset, chunk_size=70)
    directory = folder / "TrainingTask" / "offline_run3" / "v1" / "t1"
    plan = TrainingPlan(
        directory=directory,
        dataset=dataset,
        config=config,
        model_name="DeepJet",
        epochs=2,
        batch_size=31,
        loss_weighting=True,
        unmatched="drop",
        n_threads=0,
        ranks_per_node=1,
        threads_per_rank=1,
        generation="g1",
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{folder}/mlflow.db")
        Record({}, "g1").write(directory)
        request = launch.TrainingRequest(
            directory=directory,
            asked={},
            defaults={},
            config_name="offline_run3",
            restart=False,
            resume_epoch=0,
            extend_training=0,
            iterations=False,
            data_path=str(folder),
            task="TrainingTask",
            run_name="t",
            params={},
            dataset_version="v1",
        )
        launch.create_run(request, plan, "RUNNING")
        launch.launch(plan)
    return folder, directory


pytestmark = pytest.mark.long


def again(directory, folder, **values):
    run = snapshot.of_directory(directory)
    request = reproduce.Request(run, folder, this_environment=True, this_code=True, **values)
    return reproduce.reproduce(request, lambda _: None)


def test_the_weights_are_equal_bit_for_bit(outputs, tmp_path, monkeypatch, capsys):
    folder, directory = outputs
    run_id = snapshot.of_directory(directory).run_id
    monkeypatch.chdir(tmp_path)
    assert main(["reproduce", run_id[:12], "--folder", str(folder), "--here", "--this-code"]) == 0
    said = capsys.readouterr().out
    assert "model_1.pt: all weights are equal bit for bit" in said
    assert "best_model.pt: all weights are equal bit for bit" in said
    assert "nothing recorded differs" in said


def test_a_planted_parameter_is_named(outputs, tmp_path, monkeypatch, capsys):
    folder, directory = outputs
    monkeypatch.chdir(tmp_path)
    arguments = ["reproduce", str(directory), "--here", "--this-code", "--set", "learning_rate=0.002"]
    assert main(arguments) == 1
    said = capsys.readouterr()
    assert "learning_rate" in said.out
    assert "are the same up to step 1 and differ at step 2" in said.out
    assert "error: the weights differ" in said.err


def test_planted_code_is_named(outputs, tmp_path):
    folder, directory = outputs
    run = snapshot.of_directory(directory)
    run.texts["environment.json"] = run.texts["environment.json"].replace(str(run.facts["git"]["commit"]), "0" * 40)
    request = reproduce.Request(run, tmp_path / "again", this_environment=True, this_code=True)
    outcome = reproduce.reproduce(request, lambda _: None)
    assert outcome.is_equal
    assert [(one.topic, one.name) for one in outcome.differences] == [("code", "commit")]


def test_planted_data_are_named(outputs, tmp_path):
    folder, directory = outputs
    run = snapshot.of_directory(directory)
    plan = run.plan
    other = tmp_path / "other"
    build(configs.load("offline_run3"), files(tmp_path / "ntuples", seed=7), other, chunk_size=70)
    with pytest.raises(DataError, match=r"are not what they were: training set: .* has the digest .*jets\.root"):
        again(directory, tmp_path / "again", changes={"dataset": str(other)})
    recorded = run.datasets["training"]
    assert plan["dataset"] == recorded["directory"]


def test_a_set_that_is_gone_says_what_is_left_of_its_files(outputs, tmp_path):
    _, directory = outputs
    run = snapshot.of_directory(directory)
    datasets = {"training": {**run.datasets["training"], "sources": [{"path": "/no.root", "content_id": "1" * 16}]}}
    found = inputs.problems(
        datasets, TrainingPlan.model_validate_json(json.dumps({**run.plan, "dataset": str(tmp_path / "none")}))
    )
    assert len(found) == 2
    assert "made of /no.root" in found[0]
    assert found[1].startswith("training set: the ROOT file /no.root cannot be read")


def test_a_damaged_set_is_named(outputs, tmp_path):
    import shutil

    _, directory = outputs
    run = snapshot.of_directory(directory)
    copy = tmp_path / "copy"
    shutil.copytree(run.plan["dataset"], copy)
    shard = next(copy.glob("*.arrow"))
    content = bytearray(shard.read_bytes())
    content[len(content) // 2] ^= 1
    shard.write_bytes(content)
    with pytest.raises(DataError, match=shard.name):
        again(directory, tmp_path / "again", changes={"dataset": str(copy)})


def test_changed_root_files_are_named(outputs, tmp_path):
    path = files(tmp_path)[0]
    same = {"path": path, "content_id": f"{content_id(path):016x}"}
    assert inputs.root_problems({"sources": [same]}) == []
    recorded = {"sources": [{**same, "content_id": "0" * 16}, {"path": "/no.root", "content_id": "1" * 16}]}
    found = inputs.root_problems(recorded)
    assert "holds other bytes than then" in found[0]
    assert "/no.root cannot be read" in found[1]


def test_the_code_of_a_run_is_checked_out(tmp_path):
    def git(*arguments):
        subprocess.run(["git", "-c", "user.name=x", "-c", "user.email=x@x", *arguments], check=True, cwd=repository)

    repository = tmp_path / "repository"
    repository.mkdir()
    git("init", "-q")
    (repository / "a.py").write_text("a = 1\n")
    git("add", ".")
    git("commit", "-q", "-m", "a")
    commit = subprocess.run(
        ["git", "rev-parse", "HEAD"], cwd=repository, capture_output=True, text=True, check=True
    ).stdout.strip()
    patch = "diff --git a/a.py b/a.py\n--- a/a.py\n+++ b/a.py\n@@ -1 +1 @@\n-a = 1\n+a = 2\n"
    facts = f'{{"git": {{"commit": "{commit}", "dirty": true, "checkout": "{repository}"}}}}'
    run = snapshot.Snapshot("r", "r", None, {"environment.json": facts, "code.patch": patch})
    for _ in range(2):  # the second time over what the first left
        code = reproduce.checkout(run, tmp_path / "code", lambda _: None)
        assert (code / "a.py").read_text() == "a = 2\n"


def test_what_pip_is_asked_for(tmp_path):
    (tmp_path / "mine").mkdir()
    lock = (
        "# Python 3.11.7\nbhive-mltf==0.1\nclient==0.1  # from file:///code/client\nnumpy==2.0  # contents ab\n"
        f"gone==1  # from file:///no/such\nmine==1  # contents ab  # from {(tmp_path / 'mine').as_uri()}\n"
        "other==3  # from git+https://x/y.git@ab\n"
    )
    said = []
    found = reproduce.requirements_of(lock, "/code", said.append)
    assert found == [
        "numpy==2.0",
        f"mine @ {(tmp_path / 'mine').as_uri()}",
        "other @ git+https://x/y.git@ab",
    ]
    assert said == ["gone 1 was installed from /no/such, which is gone: it is left out"]


def test_a_run_without_a_plan_cannot_be_repeated(tmp_path):
    run = snapshot.Snapshot("old", "", tmp_path)
    with pytest.raises(ParameterError, match=r"records no plan\.json"):
        reproduce.reproduce(reproduce.Request(run, tmp_path / "x"), lambda _: None)


def test_lineage_in_both_directions(outputs, capsys):
    folder, directory = outputs
    found = lineage.read(folder)
    run = snapshot.of_directory(directory)
    digest = run.datasets["training"]["digest"]
    root = [name for name, node in found.nodes.items() if node.kind == "ROOT file"]
    assert len(root) == 2
    assert found.next_to(root[0], "forth") == [digest]
    assert found.next_to(digest, "forth") == [str(directory)]
    assert set(found.next_to(str(directory), "forth")) == {str(directory / n) for n in ("best_model.pt", "model_1.pt")}
    assert main(["results", str(folder), "--lineage", run.run_id]) == 0
    said = capsys.readouterr().out
    assert said.index("jets.root") < said.index("went into") < said.index("best_model.pt")
    assert main(["results", str(folder), "--lineage", str(directory / "best_model.pt")]) == 0
    assert "jets.root" in capsys.readouterr().out
    assert main(["results", str(folder), "--lineage"]) == 0
    assert digest[:12] in capsys.readouterr().out
    assert main(["results", str(folder), "--lineage", "nonsense"]) == 1


def test_what_a_run_records(outputs):
    _, directory = outputs
    run = snapshot.of_directory(directory)
    assert run.plan["epochs"] == 2
    assert run.packages["torch"][0].startswith("2.")
    assert run.facts["machine"]["host"]
    assert "starts/step_0.json" in run.texts
    sources = run.datasets["training"]["sources"]
    assert [set(source) for source in sources] == [{"path", "content_id", "entries", "accepted", "process"}] * 2
    assert run.series["train/loss"]
    assert asdict(run)["directory"] == directory
    assert sys.version.split()[0] == run.facts["machine"]["python"]
