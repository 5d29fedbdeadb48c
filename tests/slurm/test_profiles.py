import pytest

from bhive_mltf.errors import ProfileError
from bhive_mltf.slurm import job, profiles

SHIPPED = ("generic", "local-lab", "mltf-a6000", "mltf-cpu")


def written(folder, text):
    path = folder / "site.yml"
    path.write_text(text)
    return str(path)


@pytest.mark.parametrize("name", SHIPPED)
def test_shipped_profiles(name):
    profile = profiles.read_profile(name)
    assert profile.name == name
    assert profile.description
    assert profile.python


def test_shipped_profiles_are_these():
    assert profiles.available() == SHIPPED


def test_options_win_and_none_leaves_the_files_value():
    profile = profiles.read_profile("mltf-a6000", hours=3, partition=None, account="btv")
    assert (profile.hours, profile.partition, profile.account) == (3, "a6000", "btv")


def test_a_folder_of_the_site_comes_first(tmp_path, monkeypatch):
    (tmp_path / "generic.yml").write_text("partition: special\n")
    monkeypatch.setenv("BHIVE_FACILITY_DIR", str(tmp_path))
    assert profiles.read_profile("generic").partition == "special"
    assert profiles.read_profile("mltf-cpu").partition == "cpu"


def test_an_unknown_profile_is_told_with_the_nearest():
    with pytest.raises(ProfileError, match=r"no profile 'mltf-a600' in .*facility; nearest: mltf-a6000"):
        profiles.read_profile("mltf-a600")


def test_an_unknown_option_is_told_with_the_nearest_and_all():
    with pytest.raises(ProfileError, match=r"`partitoin` is no key of a profile; nearest: partition.*; all: .*hours"):
        profiles.read_profile("generic", partitoin="main")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("hour: 3\n", r"site.yml: `hour` is no key of a profile; nearest: hours"),
        ("hours: long\n", r"site.yml: hours: 'long': Input should be a valid number"),
        ("hours: 0\n", r"hours: 0: Input should be greater than 0"),
        ("gpu_style: gpus\n", r"gpu_style: 'gpus': Input should be 'gres'"),
        ("partition: a b\n", r"partition: 'a b' has blanks"),
        ('account: "a\'b"\n', r"account: .* has blanks, quotes"),
        ("hours: 5\nmax_hours: 4\npartition: p\n", r"hours 5 is more than the 4 of partition p"),
        ("nodes: 5\nmax_nodes: 4\n", r"nodes 5 is more than the 4 that a job may have"),
        ("ranks_per_node: 5\ngpus_per_node: 4\n", r"ranks_per_node 5 is more than the 4 GPUs of a node"),
        ("memory_per_cpu_gb: 1\nmemory_per_gpu_gb: 1\ngpus_per_node: 1\n", r"exclude each other"),
        ("cpus_per_rank: 1\ncpus_per_gpu: 1\ngpus_per_node: 1\n", r"exclude each other"),
        ("memory_per_gpu_gb: 1\n", r"memory_per_gpu_gb needs gpus_per_node"),
        ("cpus_per_gpu: 1\n", r"cpus_per_gpu needs gpus_per_node"),
        ("gpu_type: a6000\n", r"gpu_type needs gpus_per_node"),
        ("venv: /v\ncontainer: {image: x.sif}\n", r"container and venv exclude each other"),
        ("hours: 0.01\n", r"signal_seconds 120 is not below the time limit of 36 s"),
        ("options: {requeue: true}\n", r"requeue has a key of its own"),
        ("options: {--exclusive: true}\n", r"'--exclusive' is no long option of sbatch"),
        ("options: {reservation: a b}\n", r"reservation: 'a b' has blanks"),
        ("environment: {1A: x}\n", r"environment: '1A' is no name of an environment variable"),
        ("network: {iface: eth0}\n", r"`network.iface` is no key; there are interface, variables"),
        ("container: {binds: [a]}\n", r"container.image"),
        ("nodes: 1\nnodes: 2\n", r"the key nodes stands twice"),
    ],
)
def test_what_cannot_be_is_refused_when_typed(tmp_path, text, message):
    with pytest.raises(ProfileError if "twice" not in message else ValueError, match=message):
        profiles.read_profile(written(tmp_path, text))


def test_a_wrong_option_is_told_apart_from_a_wrong_file():
    with pytest.raises(ProfileError, match=r"mltf-a6000.yml with hours 100: hours 100 is more than the 48 of"):
        profiles.read_profile("mltf-a6000", hours=100)


def test_the_interpreter_is_that_of_the_environment(tmp_path):
    import sys

    assert profiles.read_profile(written(tmp_path, "nodes: 1\n")).python == sys.executable
    assert profiles.read_profile(written(tmp_path, "venv: /v\n")).python == "python"
    assert profiles.read_profile(written(tmp_path, "container: {image: a.sif}\n")).python == "python3"


@pytest.mark.parametrize(("asked", "ranks", "gpus"), [(0, 4, 4), (1, 1, 1), (3, 3, 3)])
def test_a_job_asks_for_one_gpu_per_rank(tmp_path, asked, ranks, gpus):
    profile = profiles.read_profile("mltf-a6000")
    spec = job.make_spec(
        profile, name="t", kind="ranks", command=["x"], directory=tmp_path, ranks_per_node=asked, threads_per_rank=12
    )
    assert (spec.ranks_per_node, spec.gpus_per_node, spec.cpus_per_rank) == (ranks, gpus, 12)


@pytest.mark.parametrize(("nodes", "ranks", "message"), [(5, 1, "nodes 5 is more"), (1, 8, "ranks_per_node 8 is more")])
def test_a_job_larger_than_the_site_is_refused(tmp_path, nodes, ranks, message):
    with pytest.raises(ProfileError, match=message):
        job.make_spec(
            profiles.read_profile("mltf-a6000"),
            name="t",
            kind="ranks",
            command=["x"],
            directory=tmp_path,
            nodes=nodes,
            ranks_per_node=ranks,
        )


def test_a_spec_is_read_as_it_was_written(tmp_path):
    spec = job.make_spec(
        profiles.read_profile("generic"),
        name="t",
        kind="command",
        command=["law", "a b", "c'\n\""],
        directory=tmp_path,
        environment={"A": "x\ny"},
    )
    assert job.JobSpec.read(spec.write()) == spec
    assert (spec.folder / spec.probe).read_text() == spec.token
