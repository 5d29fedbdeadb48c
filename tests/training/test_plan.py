import math

import pytest

from bhive_mltf.errors import ParameterError
from bhive_mltf.training.choices import LOSSES, OPTIMIZERS, SCHEDULES
from bhive_mltf.training.plan import TrainingPlan
from tests.helpers.standin import plan


def test_a_plan_survives_its_file(tmp_path):
    made = plan(tmp_path, model_kwargs={"width": 4}, betas=(0.9, 0.99), dataset_sidecar=tmp_path / "beside")
    assert made.write() == tmp_path / "plan.json"
    assert TrainingPlan.read(made.path) == made


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("batch_size", 0),
        ("epochs", -1),
        ("extend_training", -1),
        ("learning_rate", 0.0),
        ("learning_rate", math.nan),
        ("betas", (0.9, 1.0)),
        ("eps", 0.0),
        ("lr_decay_factor", -0.1),
        ("train_val_split", 0.0),
        ("train_val_split", 1.1),
        ("n_train_files", 0),
        ("n_threads", -1),
        ("nodes", 0),
        ("ranks_per_node", -1),
        ("threads_per_rank", -1),
        ("checkpoint_steps", -1),
        ("keep_checkpoints", 0),
        ("training_precision", "bfloat16"),
        ("unmatched", "ignore"),
        ("torch_compile_mode", "fast"),
    ],
)
def test_a_value_out_of_range_is_one_sentence(tmp_path, field, value):
    with pytest.raises(ParameterError, match=rf"^{field} is .*, but must be .*[^.]$") as caught:
        plan(tmp_path, **{field: value})
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("field", "valid"), [("optimizer", OPTIMIZERS), ("lr_scheduler", SCHEDULES), ("loss_function", LOSSES)]
)
def test_an_unknown_name_is_answered_with_the_valid_ones(tmp_path, field, valid):
    with pytest.raises(ParameterError) as caught:
        plan(tmp_path, **{field: "Nothing"})
    assert all(name in str(caught.value) for name in valid)


def test_types_and_unknown_fields_are_checked_too(tmp_path):
    with pytest.raises(ParameterError, match=r"batch_size of the training plan is 'many'"):
        plan(tmp_path, batch_size="many")
    with pytest.raises(ParameterError, match="colour"):
        plan(tmp_path, colour="red")
    with pytest.raises(ParameterError, match=r"no/such/plan\.json cannot be read"):
        TrainingPlan.read("no/such/plan.json")


def test_extension_moves_the_last_round(tmp_path):
    assert plan(tmp_path, epochs=3).last_number == 2
    assert plan(tmp_path, epochs=3, extend_training=2).last_number == 4
    by_iterations = {"epochs": 0, "use_iterations": True, "total_iterations": 10}
    assert plan(tmp_path, **by_iterations).last_number == 10
    assert plan(tmp_path, **by_iterations, extend_training=5).last_number == 15


@pytest.mark.parametrize(
    ("values", "sentence"),
    [
        ({"use_iterations": True, "total_iterations": 5}, "epochs is 2, but must be 0 with use_iterations"),
        ({"use_iterations": True, "epochs": 0}, "total_iterations is 0, but must be at least 1 with use_iterations"),
        ({"total_iterations": 5}, "total_iterations is 5, but must be 0 without use_iterations"),
    ],
)
def test_what_excludes_each_other_is_one_sentence(tmp_path, values, sentence):
    with pytest.raises(ParameterError, match=sentence):
        plan(tmp_path, **values)
