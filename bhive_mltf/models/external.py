"""Models of other packages: named by a Python entry point, or as `package.module:Class`.

An entry point of the group `bhive_mltf.models` gives a class a short name. The class is a `Tagger`, or a torch module
of B-Hive's kind (`models.upstream`). No torch here: the module of a model is imported when the model is made.
"""

from __future__ import annotations

import importlib
import inspect
import re
from importlib import metadata
from typing import TYPE_CHECKING, Any

from bhive_mltf.errors import ModelError, nearest

if TYPE_CHECKING:
    from torch import nn

GROUP = "bhive_mltf.models"
_DOTTED = re.compile(r"(?P<module>[^\W\d]\w*(\.[^\W\d]\w*)*):(?P<attribute>[^\W\d]\w*)")


def installed() -> dict[str, str]:
    """Entry points of the group: name -> `package.module:Class`."""
    return {point.name: point.value for point in sorted(metadata.entry_points(group=GROUP))}


def locate(name: str) -> tuple[str, str]:
    """(module, attribute) of `package.module:Class`; ModelError for another form."""
    match = _DOTTED.fullmatch(name)
    if match is None:
        msg = f"model {name!r}: a class of another package is written package.module:Class"
        raise ModelError(msg)
    return match["module"], match["attribute"]


def load(name: str, module: str, attribute: str) -> type[nn.Module]:
    """The class of a model, imported.

    Raises
    ------
    ModelError : no such module, one that fails when it is imported, or nothing in it that is a torch module's class.
    """
    from torch import nn

    found = getattr(_import(name, module), attribute, None)
    if found is None:
        there = [key for key, value in vars(_import(name, module)).items() if inspect.isclass(value)]
        hint = f" (nearest: {nearest(attribute, there, 1)[0]})" if there else ""
        msg = f"model {name!r}: the module {module} has no {attribute!r}{hint}"
        raise ModelError(msg)
    if not (inspect.isclass(found) and issubclass(found, nn.Module)):
        msg = (
            f"model {name!r}: {attribute} is no class of a torch module but {found!r:.60}; give a class derived from "
            "bhive_mltf.models.base.Tagger, or one of B-Hive's kind"
        )
        raise ModelError(msg)
    return found


def _import(name: str, module: str) -> Any:  # noqa: ANN401 - a module
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        if error.name is None or not f"{module}.".startswith(f"{error.name}."):
            raise ModelError(_cannot(name, module, error)) from error
        msg = (
            f"model {name!r}: there is no module {error.name!r}; install its package, or put the folder that it lies "
            "in into PYTHONPATH"
        )
        raise ModelError(msg) from None
    except Exception as error:
        raise ModelError(_cannot(name, module, error)) from error


def _cannot(name: str, module: str, error: Exception) -> str:
    return f"model {name!r}: its module {module} cannot be imported ({type(error).__name__}: {error})"


def options(found: type) -> tuple[dict[str, Any], bool]:
    """Parameters of a class of B-Hive's kind with a default, the first one aside; whether it takes any other too."""
    _, *parameters = inspect.signature(found).parameters.values()
    named = {p.name: p.default for p in parameters if p.default is not p.empty}
    return named, any(p.kind is p.VAR_KEYWORD for p in parameters)
