"""The space of a study: a YAML file that says between what each parameter may lie.

learning_rate: {low: 1.0e-4, high: 1.0e-2, log: true}
batch_size: {choices: [512, 1024, 2048]}
model_kwargs.num_layers: {low: 2, high: 6}
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from bhive_mltf.errors import ParameterError, nearest
from bhive_mltf.files.text import read_text

if TYPE_CHECKING:
    from optuna.distributions import BaseDistribution

KWARGS = "model_kwargs."
Value = str | int | float | bool | None


@dataclass(frozen=True)
class Range:
    """Between what a parameter may lie: numbers from `low` to `high`, or one of `choices`.

    step : of numbers; None for any float, 1 for integers. log : even in the logarithm.
    """

    low: float | int | None = None
    high: float | int | None = None
    step: float | int | None = None
    log: bool = False
    choices: tuple[Value, ...] = ()

    @property
    def is_integer(self) -> bool:
        """Whether the numbers are whole."""
        return all(isinstance(value, int) for value in (self.low, self.high, self.step or 1))

    def distribution(self) -> BaseDistribution:
        """The same for Optuna."""
        from optuna import distributions

        if self.choices:
            return distributions.CategoricalDistribution(self.choices)
        assert self.low is not None
        assert self.high is not None
        if self.is_integer:
            return distributions.IntDistribution(int(self.low), int(self.high), self.log, int(self.step or 1))
        return distributions.FloatDistribution(float(self.low), float(self.high), self.log, self.step)


def read(path: str | Path, allowed: Collection[str]) -> dict[str, Range]:
    """The space in a file.

    Parameters
    ----------
    allowed : names of parameters; `model_kwargs.<size>` is one where `model_kwargs` is.

    Raises
    ------
    ParameterError : no such file, no such parameter, or a range that is none.
    """
    try:
        content = yaml.safe_load(read_text(path))
    except (OSError, yaml.YAMLError) as error:
        raise ParameterError(f"the space {path} cannot be read ({' '.join(str(error).split())})") from error
    if not isinstance(content, dict) or not content:
        raise ParameterError(
            f"the space {path} names no parameter: write lines like `learning_rate: {{low: 1.0e-4, ...}}`"
        )
    return {str(name): _range(str(name), value, path, allowed) for name, value in content.items()}


def _range(name: str, value: Any, path: str | Path, allowed: Collection[str]) -> Range:  # noqa: ANN401 - any YAML value
    if name not in allowed and not (name.startswith(KWARGS) and "model_kwargs" in allowed):
        raise ParameterError(
            f"{path}: there is no parameter `{name}` to vary; nearest: {', '.join(nearest(name, allowed))}"
        )
    if not isinstance(value, dict) or set(value) - {"low", "high", "step", "log", "choices"}:
        raise ParameterError(f"{path}: `{name}` is {value!r}: give low and high (step, log), or choices")
    if "choices" in value:
        if not isinstance(value["choices"], list) or not value["choices"] or len(value) > 1:
            raise ParameterError(f"{path}: `{name}` has {value!r}: give a list of choices, and nothing else")
        return Range(choices=tuple(value["choices"]))
    found = Range(value.get("low"), value.get("high"), value.get("step"), bool(value.get("log", False)))
    numbers = [one for one in (found.low, found.high) if isinstance(one, int | float) and not isinstance(one, bool)]
    if len(numbers) < 2 or numbers[0] > numbers[1] or (found.log and numbers[0] <= 0) or (found.log and found.step):
        raise ParameterError(
            f"{path}: `{name}` has {value!r}: give numbers low <= high; with log above 0 and without step"
        )
    return found


def digest(space: Mapping[str, Range]) -> str:
    """Of the meaning of a space, 12 hexadecimal digits."""
    plain = {name: vars(found) for name, found in space.items()}
    return hashlib.sha256(json.dumps(plain, sort_keys=True, default=list).encode()).hexdigest()[:12]


def parameters(values: Mapping[str, Value], fixed_kwargs: Mapping[str, Any]) -> dict[str, Any]:
    """Parameters of a training from values of a trial: sizes of the model go into `model_kwargs`."""
    plain = {name: value for name, value in values.items() if not name.startswith(KWARGS)}
    kwargs = {name.removeprefix(KWARGS): value for name, value in values.items() if name.startswith(KWARGS)}
    return {**plain, **({"model_kwargs": {**fixed_kwargs, **kwargs}} if kwargs else {})}
