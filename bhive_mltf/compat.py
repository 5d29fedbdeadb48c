"""What newer versions of other packages added or renamed, each with the version that it is about.

The floors of `pyproject.toml` are those of upstream's environment (`constraints-upstream.txt`), where the tests run
too. Nothing is imported before it is used.
"""

from __future__ import annotations

import functools
import importlib.util
import inspect
import signal
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from importlib import metadata
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

from bhive_mltf.errors import DataError, ParameterError

if TYPE_CHECKING:
    from torch import Tensor, nn
    from torch.distributed.elastic.multiprocessing import LogsDest
    from torch.distributed.launcher.api import LaunchConfig


@functools.cache
def major(package: str) -> int:
    """First number of the installed version of a package; 0 where it is not installed."""
    try:
        return int(metadata.version(package).partition(".")[0])
    except (metadata.PackageNotFoundError, ValueError):
        return 0


def installed(packages: Iterable[str]) -> dict[str, str]:
    """Versions of those packages that are installed."""
    versions = {}
    for name in packages:
        with suppress(metadata.PackageNotFoundError):
            versions[name] = metadata.version(name)
    return versions


def pinned(packages: Iterable[str]) -> list[str]:
    """Requirements `name==version` for those packages that are installed; without the part of a build, such as +cpu."""
    return [f"{name}=={version.partition('+')[0]}" for name, version in installed(packages).items()]


def has(package: str) -> bool:
    """Whether a package is installed; it is not imported."""
    return importlib.util.find_spec(package) is not None


def require(what: str, extra: str, *packages: str) -> None:
    """Refuse `what` where one of the packages of an extra is missing.

    Raises
    ------
    ParameterError
        Names what is missing and how to install it.
    """
    missing = [package for package in packages if not has(package)]
    if missing:
        raise ParameterError(
            f"{what} needs {' and '.join(missing)}, not installed here: pip install 'bhive_mltf[{extra}]'"
        )


def require_root_reader(path: str) -> None:
    """Refuse a ROOT file where uproot is older than 5: it has awkward 1 for lists, and neither RNTuple nor `Float16_t`.

    Raises
    ------
    DataError
        Names the file, the version and how to install another one.
    """
    if major("uproot") < 5:
        raise DataError(
            f"'{path}' is a ROOT file, which takes uproot 5, and {metadata.version('uproot')} is installed: pip "
            "install 'uproot>=5.3', where another package needs uproot 4 in an environment of its own"
        )


def has_sqlalchemy() -> bool:
    """Whether mlflow can open a SQLite store: mlflow-skinny comes without SQLAlchemy."""
    return has("sqlalchemy")


# torch


def total_norm(tensors: Iterable[Tensor]) -> Tensor:
    """Norm of several tensors as one vector; `torch.nn.utils.get_total_norm` since torch 2.6."""
    import torch

    found = list(tensors)
    if hasattr(torch.nn.utils, "get_total_norm"):
        return torch.nn.utils.get_total_norm(found)
    norms = [torch.linalg.vector_norm(tensor) for tensor in found]
    return torch.linalg.vector_norm(torch.stack(norms)) if norms else torch.tensor(0.0)


def no_buffer_messages() -> dict[str, Any]:
    """Option of DDP that keeps buffers to each rank; `broadcast_buffers` before torch 2.13."""
    from torch.nn.parallel import DistributedDataParallel

    known = inspect.signature(DistributedDataParallel).parameters
    return {"forward_sync_buffers" if "forward_sync_buffers" in known else "broadcast_buffers": False}


def logs_dest(
    stdouts: Mapping[int, str],
    stderrs: Mapping[int, str],
    shown: Mapping[int, str],
    errors: Mapping[int, str],
    off: str,
) -> LogsDest:
    """Files of the ranks' output by local rank; torch after 2.6 asks for files of filtered output too (`off`)."""
    from torch.distributed.elastic.multiprocessing import LogsDest

    filtered = [off] * (len(inspect.signature(LogsDest).parameters) - 5)
    return LogsDest(dict(stdouts), dict(stderrs), {}, dict(shown), dict(errors), *filtered)


def launch_config(signals: Sequence[signal.Signals], shutdown_timeout: int, **options: Any) -> LaunchConfig:  # noqa: ANN401
    """Settings of torch's elastic launcher.

    signals : that end the ranks, and shutdown_timeout : seconds that they have to end, are options after torch 2.6.
    Before, SIGHUP and SIGQUIT count as well (see `ignored_signals`) and the time is 30 s.
    """
    from torch.distributed.launcher.api import LaunchConfig

    newer: dict[str, Any] = {
        "signals_to_handle": ",".join(number.name for number in signals),
        "shutdown_timeout": shutdown_timeout,
    }
    known = inspect.signature(LaunchConfig).parameters
    return LaunchConfig(**options, **{name: value for name, value in newer.items() if name in known})


class _SignalModule(ModuleType):
    """The module `signal`, but handlers are set only for what is not ignored."""

    def __init__(self) -> None:
        super().__init__("signal")
        self.__dict__.update(vars(signal), signal=self._set)

    @staticmethod
    def _set(number: int, handler: Any) -> Any:  # noqa: ANN401 - as in the standard library
        before = signal.getsignal(number)
        return before if before is signal.SIG_IGN else signal.signal(number, handler)


@contextmanager
def ignored_signals() -> Iterator[None]:
    """Inside, what this process ignores stays ignored: up to torch 2.6 the launcher undoes what nohup did."""
    from torch.distributed.elastic.multiprocessing import api
    from torch.distributed.launcher.api import LaunchConfig

    if "signals_to_handle" in inspect.signature(LaunchConfig).parameters:
        yield
        return
    names: dict[str, Any] = vars(api)
    names["signal"] = _SignalModule()
    try:
        yield
    finally:
        names["signal"] = signal


def uncompiled() -> AbstractContextManager[Any]:
    """What `torch.compile` made runs as it was written while it lasts, from torch 2.6 on; before, it stays compiled."""
    import torch

    return torch.compiler.set_stance("force_eager") if hasattr(torch.compiler, "set_stance") else nullcontext()


def set_compiled_variants(number: int) -> None:
    """How many variants of a function `torch.compile` makes before it lets it run as written.

    `cache_size_limit` in torch 2.5, which newer ones have as another name.
    """
    from torch._dynamo import config

    setattr(config, "recompile_limit" if hasattr(config, "recompile_limit") else "cache_size_limit", number)


def set_cuda_allocator(settings: str) -> None:
    """Settings of CUDA's allocator for what is allocated from now on, as its environment variable has them.

    From torch 2.9 on the variable is read when torch is loaded; `torch.cuda` had the function before 2.10.
    """
    import torch

    newer = getattr(torch._C, "_accelerator_setAllocatorSettings", None)
    found = newer or getattr(torch.cuda.memory, "_set_allocator_settings", None)
    # not a part of torch's interface: a training goes on without it
    if found is not None:
        found(settings)


# mlflow


def has_logged_models() -> bool:
    """Whether mlflow keeps models as such, with metrics of their own: since 3.0."""
    return max(major("mlflow-skinny"), major("mlflow")) >= 3


def save_torch_model(
    module: nn.Module,
    folder: Path,
    requirements: Sequence[str],
    signature: Any = False,  # noqa: ANN401 - a ModelSignature; False: none, and none is guessed
    input_example: Mapping[str, Any] | None = None,
) -> None:
    """Save a module as mlflow does, pickled: other formats and the option for it are newer than mlflow 2.22.

    Raises
    ------
    ImportError
        mlflow needs pandas for it, which mlflow-skinny does not bring.
    """
    import mlflow.pytorch

    known = inspect.signature(mlflow.pytorch.save_model).parameters
    newer: dict[str, Any] = {"serialization_format": "pickle"} if "serialization_format" in known else {}
    newer |= {"signature": signature, "input_example": input_example}
    mlflow.pytorch.save_model(module, folder, pip_requirements=list(requirements), **newer)
