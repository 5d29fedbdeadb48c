"""What projects ask for as their environment, read without an installer."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bhive_mltf.gateway.environments.wanted import read_wanted
from bhive_mltf.gateway.errors import ProjectError

HASH = "sha256:" + "ab" * 32


def read(name, **files):
    """What a file asks for; names of files with `_` for the dot."""
    texts = {key.replace("_", ".", 1) if "." not in key else key: text for key, text in files.items()}
    return read_wanted(name, texts.get)


def test_requirements_with_comments_extras_and_markers():
    text = "# all\nnumpy>=1.26,<3  # arrays\n\ntorch [opt] == 2.5.* ; python_version < '3.13'\nplain\n"
    found = read("a.txt", **{"a.txt": text})
    assert found.requirements == ("numpy>=1.26,<3", "torch [opt] == 2.5.* ; python_version < '3.13'", "plain")
    assert (found.is_locked, found.python) == (False, "")


def test_python_env_of_mlflow_names_python_and_a_file():
    text = "python: 3.10\nbuild_dependencies: [pip]\ndependencies:\n- mlflow==2.22\n- -r more.txt\n"
    found = read("env/e.yaml", **{"env/e.yaml": text, "env/more.txt": "-c limits.txt\na\n", "env/limits.txt": "b<2\n"})
    assert found.requirements == ("pip", "mlflow==2.22", "a")
    assert found.constraints == ("b<2",)
    assert (found.python, found.asked_python) == ("3.10", "3.10")


@pytest.mark.parametrize(("python", "minor"), [("3.11.7", "3.11"), ("'3.12'", "3.12"), ("==3.11.*", "3.11")])
def test_patch_version_of_python_is_the_sites(python, minor):
    assert read("e.yml", **{"e.yml": f"python: {python}\n"}).python == minor


def test_lock_keeps_its_hashes_and_nothing_else():
    long = f"--hash=sha512:{'c' * 128}"
    text = f"b==1.0 \\\n    --hash={HASH} \\\n    {long}\n    # via a\na==2 ; os_name == 'nt' --hash={HASH}\n"
    found = read("lock.txt", **{"lock.txt": text})
    assert found.is_locked
    assert found.requirements == (
        f"b==1.0 --hash={HASH} --hash=sha512:{'c' * 128}",
        f"a==2 ; os_name == 'nt' --hash={HASH}",
    )


def test_files_that_name_each_other_are_read_once():
    found = read("a.txt", **{"a.txt": "-r b.txt\nx\n", "b.txt": "--requirement=a.txt\ny\n"})
    assert found.requirements == ("y", "x")


@pytest.mark.parametrize(
    "line",
    [
        *(
            "git+https://example.org/x.git",
            "x @ https://example.org/x.whl",
            "https://example.org/x.whl",
            "./x",
            "/etc/x",
        ),
        *("-e .", "--editable=.", "--index-url https://example.org", "--extra-index-url=https://x", "-f /wheels"),
        *("--find-links /wheels", "--trusted-host x", "--pre", "x.whl", "x-1.tar.gz", "x==$VERSION", "x==1; a @ b"),
        *("--no-binary :all:", "x --global-option=a", "x --hash=md5:00", "a b", "x==1 --hash=sha256:zz", "file:x"),
    ],
)
def test_what_is_no_package_of_the_index_is_refused(line):
    with pytest.raises(ProjectError, match="is no name of a package of the site's index"):
        read("a.txt", **{"a.txt": f"numpy\n{line}\n"})


@pytest.mark.parametrize(
    ("name", "files", "message"),
    [
        ("a.txt", {}, "has no file 'a.txt'"),
        ("../a.txt", {"../a.txt": "x"}, "no file of the project"),
        ("a.txt", {"a.txt": "-r ../b.txt"}, "no file of the project"),
        ("a.txt", {"a.txt": "-r /etc/passwd"}, "no file of the project"),
        ("a.txt", {"a.txt": f"a==1 --hash={HASH}\nb==2\n"}, "none for 'b==2': lock all"),
        ("a.txt", {"a.txt": f"a>=1 --hash={HASH}\n"}, "no single version of 'a'"),
        ("c.yaml", {"c.yaml": "channels: [defaults]\ndependencies: [python=3.9]"}, "for conda.*a python_env.yaml"),
        ("c.yaml", {"c.yaml": "dependencies: [a, {pip: [b]}]"}, "for conda.*a python_env.yaml"),
        ("e.yaml", {"e.yaml": "pyton: 3.11"}, "the key 'pyton'; there are build_dependencies"),
        ("e.yaml", {"e.yaml": "python: 2.7"}, "Python '2.7': write a version"),
        ("e.yaml", {"e.yaml": "dependencies: {a: 1}"}, "no list of requirements"),
        ("e.yaml", {"e.yaml": "[a]"}, "no keys"),
        ("e.yaml", {"e.yaml": "a: ]"}, "no YAML"),
        ("e.yaml", {"e.yaml": "#" * 70_000}, "longer than"),
        ("0", {str(n): f"-r {n + 1}" for n in range(30)}, "more than 20 files"),
    ],
)
def test_wrong_file_is_one_sentence(name, files, message):
    with pytest.raises(ProjectError, match=message) as caught:
        read_wanted(name, files.get)
    assert "\n" not in str(caught.value)


@given(st.text(alphabet=st.sampled_from("ab1=-<>[]@/\\:;.,$~! #'\n"), max_size=60))
def test_no_text_reaches_an_option_an_address_or_a_path(text):
    try:
        found = read_wanted("a.txt", {"a.txt": text}.get)
    except ProjectError:
        return
    for one in found.requirements:
        assert one[0].isalnum()
        assert not {"@", "\n", "\\", "$"} & set(one)
        assert "/" not in one.partition(";")[0]
