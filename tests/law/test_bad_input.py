"""What a user can get wrong: one sentence each, an exit code that is not 0, nothing that looks complete."""

import shutil

import pytest

from bhive_mltf.testing import jets
from tests.helpers.commands import Sandbox, flat, write_config

DATASET = ["--dataset-version", "v1"]
DEEPJET = ["--model-name", "DeepJet", "--training-version", "t1", "--n-threads", 0, "--tracking", False]


def refused(done, *parts):
    """The sentence of the error, which names all of `parts`."""
    assert done.returncode != 0, done.stdout
    assert "Traceback" not in done.stdout, done.stdout
    sentences = [line for line in done.stdout.splitlines() if line.startswith("error: ")]
    assert sentences, done.stdout
    assert any(all(part in sentence for part in parts) for sentence in sentences), sentences
    return sentences


def nothing_looks_complete(sandbox):
    names = ("processed_files.txt", "best_model.pt", "model_*.pt", "prediction.npy", "auc.json", "*.tmp", "file_*")
    return [str(p) for name in names for p in sandbox.data_path.rglob(name)] == []


def write_list(folder, *lines):
    path = folder / "list.txt"
    path.write_text("".join(f"{line}\n" for line in lines))
    return path


@pytest.fixture(scope="module")
def ntuple(tmp_path_factory):
    """One good file of 300 toy jets."""
    return jets.write_btag(tmp_path_factory.mktemp("good") / "TT.root", 300, seed=5)


LISTS = {
    "missing list": (lambda folder, good: folder / "none.txt", ["none.txt", "--filelist"]),
    "empty list": (lambda folder, good: write_list(folder, "", "  "), ["names no file"]),
    "missing file": (lambda folder, good: write_list(folder, good, "gone_TT.root"), ["gone_TT.root", "line 2"]),
    "file twice": (lambda folder, good: write_list(folder, good, good), ["twice"]),
}


@pytest.mark.parametrize("case", LISTS)
def test_w06_lists_that_cannot_be_used(sandbox, ntuple, case):
    make, parts = LISTS[case]
    filelist = make(sandbox.folder, ntuple)
    done = sandbox.law("run", "DatasetConstructorTask", "--config", "offline_run3", *DATASET, "--filelist", filelist)
    refused(done, *parts)
    assert nothing_looks_complete(sandbox)
    status = sandbox.law(
        "run",
        "DatasetConstructorTask",
        "--config",
        "offline_run3",
        *DATASET,
        "--filelist",
        filelist,
        "--print-status",
        -1,
    )
    assert status.returncode == 0
    assert "Traceback" not in status.stdout


def test_w06_blank_lines_in_a_list_are_accepted(sandbox, ntuple):
    filelist = write_list(sandbox.folder, "", ntuple, "", "# the end", "")
    output = sandbox.run("DatasetConstructorTask", "--config", "offline_run3", *DATASET, "--filelist", filelist)
    assert "300 jets read" in output


def truncated(folder, good):
    path = folder / "TT_short.root"
    path.write_bytes(good.read_bytes()[:-5000])
    return path


FILES = {
    "truncated file": (truncated, ["TT_short.root", "--skip-bad-files"]),
    "not a ROOT file": (lambda folder, good: folder / "TT.txt", ["TT.txt"]),
    "no process": (lambda folder, good: shutil.copy(good, folder / "Higgs.root"), ["Higgs.root", "TT, QCD"]),
}


@pytest.mark.parametrize("case", FILES)
def test_files_that_cannot_be_used(sandbox, ntuple, case):
    make, parts = FILES[case]
    (sandbox.folder / "TT.txt").write_text("no jets here")
    filelist = write_list(sandbox.folder, make(sandbox.folder, ntuple))
    config = write_config(sandbox.folder, processes=["TT", "QCD"])
    done = sandbox.law("run", "DatasetConstructorTask", "--config", config, *DATASET, "--filelist", filelist)
    refused(done, *parts)
    assert nothing_looks_complete(sandbox)


def test_bad_files_can_be_skipped_and_are_counted(sandbox, ntuple):
    filelist = write_list(sandbox.folder, ntuple, truncated(sandbox.folder, ntuple))
    options = ["--config", "offline_run3", *DATASET, "--filelist", filelist, "--skip-bad-files", True]
    output = sandbox.run("DatasetConstructorTask", *options)
    assert "left out" in output
    manifest = (sandbox.data_path / "DatasetConstructorTask/offline_run3/v1/manifest.json").read_text()
    assert "TT_short.root" in manifest


CONFIGS = {
    "unknown key": ({"bin_pt": [1, 2]}, ["bin_pt", "bins_pt", "mine.yml"]),
    "missing branch": ({"global_features": ["jet_pt", "jet_eta", "jet_ptt"]}, ["jet_ptt", "jet_pt"]),
    "reference without jets": (
        {"truths": ["isB", "isC", "isUndefined"], "reference_flavour": "isUndefined"}, ["isUndefined", "isB", "isC"],
    ),
    "one class with jets": ({"truths": ["isB", "isUndefined"], "reference_flavour": "isB"}, ["isB", "isUndefined"]),
    "no reference": ({"reference_flavour": "isX"}, ["isX", "isB"]),
}  # fmt: skip


@pytest.mark.parametrize("case", CONFIGS)
def test_configs_that_cannot_be_used(sandbox, ntuple, case):
    changes, parts = CONFIGS[case]
    config = write_config(sandbox.folder, **changes)
    filelist = write_list(sandbox.folder, ntuple)
    done = sandbox.law("run", "DatasetConstructorTask", "--config", config, *DATASET, "--filelist", filelist)
    refused(done, *parts)
    assert nothing_looks_complete(sandbox)


PARAMETERS = {
    "unknown config": (["--config", "offline_run33"], ["offline_run33", "offline_run3"]),
    "chunk size 0": (["--DatasetConstructorTask-chunk-size", 0], ["--chunk-size 0"]),
    "unknown model": (["--model-name", "DeepJett"], ["DeepJett", "DeepJet"]),
    "a model of upstream": (["--model-name", "ParticleNet"], ["ParticleNet", "DeepJet"]),
    "unknown size": (["--model-kwargs", '{"dropouts": 0}'], ["dropouts", "dropout"]),
    "unknown optimiser": (["--optimizer", "Adm"], ["Adm", "AdamW"]),
    "unknown attack": (["--attack", "fgsm"], ["fgsm", "nominal"]),
    "batch size 0": (["--batch-size", 0], ["batch", "0"]),
    "more nodes than a job may have": (["--slurm", "local-lab", "--nodes", 3], ["nodes 3", "local-lab", "the 2"]),
    "other classes": (["--config", "jet_class"], ["DeepJet", "jet_class"]),
}


@pytest.mark.parametrize("case", PARAMETERS)
def test_parameters_are_refused_before_anything_runs(sandbox, ntuple, case):
    options, parts = PARAMETERS[case]
    filelist = write_list(sandbox.folder, ntuple)
    defaults = ["--config", "offline_run3", *DEEPJET]
    typed = {
        **dict(zip(defaults[::2], defaults[1::2], strict=True)),
        **dict(zip(options[::2], options[1::2], strict=True)),
    }
    done = sandbox.law("run", "TrainingTask", *flat(typed), *DATASET, "--filelist", filelist)
    assert done.returncode == 50
    refused(done, *parts)
    assert nothing_looks_complete(sandbox)


@pytest.fixture(scope="module")
def prepared(tmp_path_factory, law_home, ntuple):
    """A finished training set of 300 jets, and its list."""
    sandbox = Sandbox(tmp_path_factory.mktemp("prepared"), law_home)
    sandbox.filelist = write_list(sandbox.folder, ntuple)
    sandbox.run("DatasetConstructorTask", "--config", "offline_run3", *DATASET, "--filelist", sandbox.filelist)
    return sandbox


TRAININGS = {
    "fewer jets than a batch": (["--batch-size", 1024], ["1024", "--batch-size"]),
    "more ranks than jets": (["--batch-size", 2, "--ranks-per-node", 3], ["ranks_per_node is 3", "has 2 jets"]),
    "fewer jets, found by ranks": (
        ["--batch-size", 1024, "--ranks-per-node", 2],
        ["1024", "--batch-size"],
    ),
    "several nodes here": (["--nodes", 2], ["--nodes 2", "also inside an allocation", "--slurm PROFILE"]),
}


# ranks of their own take seconds
@pytest.mark.parametrize(
    "case", [pytest.param(case, marks=pytest.mark.long) if "by ranks" in case else case for case in TRAININGS]
)
def test_trainings_that_cannot_start(prepared, case):
    options, parts = TRAININGS[case]
    version = ["--training-version", case.replace(" ", "_")]
    done = prepared.law("run", "TrainingTask", "--config", "offline_run3", *DATASET, *DEEPJET, *version, *options)
    refused(done, *parts)
    folder = prepared.data_path / "TrainingTask/offline_run3/v1" / version[1]
    assert [*folder.rglob("model_*.pt"), *folder.rglob("best_model.pt")] == []


def test_w15_jets_in_no_class_are_refused_with_the_ways_out(sandbox, ntuple):
    labels = ("isB", "isBB", "isGBB", "isLeptonicB", "isLeptonicB_C", "isC", "isCC", "isGCC", "isUD", "isS")
    truths = {label: [{label: [1]}] for label in labels}
    truths["isG"] = [{"isG": [1]}, {"jet_pt": [{">": 60}]}]
    truths["soft_gluon"] = [{"isG": [1]}, {"jet_pt": [{"<=": 60}]}]
    config = write_config(sandbox.folder, truths=truths)
    filelist = write_list(sandbox.folder, ntuple)
    # sampling keeps about 100 of the 255 training jets: the ids differ from one making of the file to the next
    options = ["--config", config, *DEEPJET, *DATASET, "--filelist", filelist, "--batch-size", 50]
    refused(sandbox.law("run", "TrainingTask", *options), "--unmatched", "drop", "first", "soft_gluon")
    assert list(sandbox.data_path.rglob("best_model.pt")) == []
    sandbox.run("TrainingTask", *options, "--unmatched", "drop")


def test_w44_two_lists_for_one_version_in_one_command(sandbox, ntuple):
    other = jets.write_btag(sandbox.folder / "TT_2.root", 50, seed=6)
    train, test = write_list(sandbox.folder, ntuple), sandbox.folder / "test.txt"
    test.write_text(f"{other}\n")
    options = ["--config", "offline_run3", *DEEPJET, "--filelist", train, "--test-filelist", test]
    done = sandbox.law("run", "ROCCurveTask", *options)
    assert done.returncode == 50
    refused(done, "--test-dataset-version", "version of its own")
    assert nothing_looks_complete(sandbox)
    status = sandbox.law("run", "ROCCurveTask", *options, "--print-status", -1)
    assert status.returncode == 0
    assert "version of its own" in status.stdout


def test_data_path_is_needed(sandbox, ntuple):
    options = ["--config", "offline_run3", *DATASET, "--filelist", write_list(sandbox.folder, ntuple)]
    done = sandbox.law("run", "DatasetConstructorTask", *options, DATA_PATH="")
    assert done.returncode != 0
    assert "DATA_PATH is not set" in done.stdout
