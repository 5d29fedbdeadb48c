"""From `MLproject` and parameters to the arguments of a command, without a shell."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bhive_mltf.gateway.errors import ProjectError
from bhive_mltf.gateway.projects import mlproject

TEXT = """
name: demo
entry_points:
  main:
    parameters:
      epochs: {type: float, default: 5}
      data: path
      label: {default: "a b"}
    command: "python train.py --epochs={epochs} --data {data} 'fixed word' {label}"
"""


def point(text=TEXT, name="main"):
    return mlproject.parse(text).entry_points[name]


def test_defaults_and_values_are_put_into_single_arguments():
    argv = point().argv({"data": "in/a file", "epochs": "7"})
    assert argv == ["python", "train.py", "--epochs=7", "--data", "in/a file", "fixed word", "a b"]


def test_entry_point_survives_its_way_through_json():
    assert mlproject.EntryPoint.of(point().as_dict()) == point()


def test_undeclared_parameters_are_added_at_the_end():
    argv = point().argv({"data": "d", "extra": "1", "flag": "-rf"})
    assert argv[-3:] == ["--extra", "1", "--flag=-rf"]


@given(st.dictionaries(st.sampled_from(["epochs", "label", "data"]), st.text(max_size=50)))
def test_no_value_becomes_two_arguments(values):
    values = {name: value.replace("\0", "") for name, value in values.items()} | {"epochs": "1"}
    values.setdefault("data", "d")
    try:
        argv = point().argv(values)
    except ProjectError:
        assert ".." in values["data"]
        return
    assert len(argv) == 7
    assert argv[6] == values.get("label", "a b")


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({}, "needs the parameter 'data'"),
        ({"data": "d", "epochs": "many"}, "must be a number"),
        ({"data": "../secret"}, "leads out of the project"),
        ({"data": "d", "label": "a\0b"}, "zero byte"),
        ({"data": "d", "label": "a" * 7000}, "7,000 characters"),
        ({"data": "d", "a b": "1"}, "no name of a parameter"),
    ],
)
def test_wrong_parameters_are_one_sentence(values, message):
    with pytest.raises(ProjectError, match=message):
        point().argv(values)


@pytest.mark.parametrize("command", ["a; b", "a && b", "a | b", "a > b", "a `b`", "a $(b)", "a $HOME", "a 'b"])
def test_command_that_needs_a_shell_is_refused(command):
    with pytest.raises(ProjectError, match="shell|quote"):
        mlproject.parse(f"entry_points: {{main: {{command: {command!r}}}}}")


def test_shell_signs_in_quotes_are_plain_text():
    text = "entry_points: {main: {command: \"python -c 'print(1); print(2)'\"}}"
    assert point(text).argv({}) == ["python", "-c", "print(1); print(2)"]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[1]", "no keys"),
        ("entry_points: 3", "no mapping"),
        ("entry_points: {main: {}}", "no command"),
        ("entry_points: {main: {command: 'a {b}'}}", "{b}, which is no parameter"),
        ("entry_points: {main: {command: a, parameters: {b: int}}}", "the type 'int'"),
        ("backend: x", "the key 'backend'"),
    ],
)
def test_wrong_file_is_one_sentence(text, message):
    with pytest.raises(ProjectError, match=message):
        mlproject.parse(text)


def test_unknown_entry_point_names_those_there_are():
    with pytest.raises(ProjectError, match="no entry point 'mian'; there are: main"):
        mlproject.choose({"main": point().as_dict()}, "mian")
