import pytest

from bhive_mltf.errors import DataError, RecordMismatchError
from bhive_mltf.files.records import Record, compare, is_current

DEFAULTS = {"batch_size": 1024, "betas": (0.95, 0.999)}


def test_a_record_comes_back_as_written(tmp_path):
    record = Record.new({"batch_size": 512, "betas": (0.9, 0.99)})
    record.write(tmp_path)
    assert Record.read(tmp_path) == record
    assert Record.read(tmp_path / "none") is None
    assert Record.new({}).generation != record.generation


def test_w17_a_changed_parameter_is_an_error_with_both_values(tmp_path):
    with pytest.raises(RecordMismatchError, match="--batch-size 512, and 256 is asked for"):
        compare({"batch_size": 512}, {"batch_size": 256}, DEFAULTS, tmp_path)


def test_w17_a_default_parameter_takes_the_recorded_value(tmp_path):
    (note,) = compare({"batch_size": 512}, {"batch_size": 1024}, DEFAULTS, tmp_path)
    assert "--batch-size 512, which holds" in note


def test_equal_parameters_say_nothing(tmp_path):
    assert compare({"betas": [0.95, 0.999]}, {"betas": (0.95, 0.999), "new": 1}, DEFAULTS, tmp_path) == []


def test_a_broken_record_is_named(tmp_path):
    (tmp_path / "parameters.json").write_text("{")
    with pytest.raises(DataError, match="parameters.json"):
        Record.read(tmp_path)


def test_a_result_is_out_of_date_when_its_source_was_made_anew(tmp_path):
    source, result = tmp_path / "training", tmp_path / "inference"
    Record.new({}).write(source)
    Record.new({}, {"training": source}).write(result)
    assert is_current(result, {"training": source})
    Record.new({}).write(source)
    assert not is_current(result, {"training": source})
    assert is_current(result, {"training": tmp_path / "gone"})
    assert is_current(tmp_path / "no record", {"training": source})
