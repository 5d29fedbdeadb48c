"""What the mixins have in common: they wrap the `run` of a task class, once per call of it from outside.

A mixin is a plain class. It takes part in `run()` by an `around_run(task, work)` of its own, and says by `place` where
it stands among the others: the lowest is the outermost.
"""

from __future__ import annotations

import functools
import inspect
import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, ClassVar, Literal, TypeGuard

import luigi

from bhive_mltf.errors import ParameterError
from bhive_mltf.law.parameters import Host

Status = Literal["RUNNING", "SCHEDULED"]
NEEDED = ("local_path", "to_str_params", "complete", "publish_message")
Work = Callable[[], None]


class RunMixin(Host):
    """Base of the mixins.

    A class that has one wraps its own `run`. A subclass that calls `super().run()` is one run: only the outermost call
    is wrapped.
    """

    place: ClassVar[int] = -1
    # whether one command at a time may work in the directory of the outputs
    one_command: ClassVar[bool] = False
    # what a rank is started as
    rank_module: ClassVar[str] = "bhive_mltf.law.mixins.rank_process"
    _runs = _is_alone = False

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        if not issubclass(cls, luigi.Task):
            return
        _refuse_bases(cls)
        _refuse_missing(cls)
        run = _run_of_the_task(cls)
        if run is not None and inspect.isgeneratorfunction(inspect.unwrap(run)):
            raise TypeError(
                f"{cls.__name__}.run yields requirements, which a mixin cannot hand on: return them from requires()"
            )
        if "run" in vars(cls):
            cls.run = _wrapped(vars(cls)["run"])  # type: ignore[method-assign]

    def run(self) -> None:
        """The `run` of the bases that come after the mixins, in a class without one of its own."""
        self.run_once(super().run)

    def run_once(self, work: Work) -> None:
        """Do the work of `run()` with all mixins of this task around it; inside of that, the work alone."""
        if self._runs:
            work()
            return
        bases = [base for base in type(self).__mro__ if _is_mixin(base) and "around_run" in vars(base)]
        mixins: dict[int, Any] = {base.place: base for base in bases}
        work = functools.partial(self._from_where_it_was, work)
        for _, mixin in sorted(mixins.items(), reverse=True):
            work = functools.partial(mixin.around_run, self, work)
        self._runs = True
        try:
            work()
        finally:
            self._runs = False

    @contextmanager
    def alone(self) -> Iterator[bool]:
        """One command at a time works in the directory of the outputs; false where another one has done the work."""
        if not self.one_command or self._is_alone:
            yield True
            return
        from bhive_mltf.training import launch

        was_complete = self.complete()
        with launch.one_command(Path(self.local_path())):
            self._is_alone = True
            try:
                yield was_complete or not self.complete()
            finally:
                self._is_alone = False

    def _from_where_it_was(self, work: Work) -> None:
        self.resume_if_begun()
        work()

    # hooks, for the mixins to know of each other

    def is_left(self) -> bool:
        """Hook: whether the work is still to be done, once this command is alone in the directory."""
        return True

    def resume_if_begun(self) -> None:
        """Hook: go on with what an earlier command or attempt left.

        With upstream's parameter `resume_training` and models of epochs in the directory, that is switched on.
        """
        if getattr(self, "resume_training", True) or not any(Path(self.local_path()).glob("model_[0-9]*.pt")):
            return
        text = f"going on with the models in {self.local_path()}; remove them to begin anew"
        self.publish_message(text, scheduler=False)
        self.resume_training = True

    def prepare_run(self, status: Status = "RUNNING") -> None:
        """Hook: the work is about to begin, here, in ranks that this command starts, or in a job (SCHEDULED)."""

    def announce(self) -> None:
        """Hook: the task is about to be handed in as a job."""

    def close_run(self, status: str, reason: str = "") -> None:
        """Hook: the task ended here without having ended its run."""

    def starts_ranks(self) -> bool:
        """Hook: whether the work is done by other processes, which this one starts."""
        return False

    def rank_file(self) -> Path | None:
        """Hook: the file that each rank of a job reads; None for a task that has no ranks."""
        return None


def _wrapped(run: Callable[..., None]) -> Callable[..., None]:
    @functools.wraps(run)
    def wrapper(self: RunMixin) -> None:
        self.run_once(functools.partial(run, self))

    return wrapper


def _run_of_the_task(cls: type) -> Callable[..., Any] | None:
    """The `run` that does the work, of the class or of its bases behind the mixins."""
    found = (vars(base)["run"] for base in cls.__mro__ if "run" in vars(base) and base is not RunMixin)
    return next(found, None)


def _is_mixin(base: type) -> TypeGuard[type[RunMixin]]:
    return issubclass(base, RunMixin) and not issubclass(base, luigi.Task)


def _refuse_bases(cls: type) -> None:
    """TypeError for mixins in another order than the documented one, or behind other bases."""
    for number, base in enumerate(cls.__bases__):
        before = next((one for one in cls.__bases__[:number] if _place(one) > _place(base)), None)
        if before is not None:
            raise TypeError(
                f"class {cls.__name__} has {base.__name__} behind {before.__name__}: its bases are SlurmMixin, "
                "MLflowMixin, RanksMixin in this order, those that it has, and then all others"
            )


def _place(base: type) -> float:
    return base.place if _is_mixin(base) else math.inf


def _refuse_missing(cls: type) -> None:
    """TypeError for a class that lacks what the mixins need of a task."""
    theirs = [base for base in cls.__mro__ if not _is_mixin(base)]
    missing = [name for name in NEEDED if not any(name in vars(base) for base in theirs)]
    if missing:
        first = next(base.__name__ for base in cls.__bases__ if issubclass(base, RunMixin))
        raise TypeError(
            f"class {cls.__name__} has no {' and no '.join(missing)}, which {first} needs: put a law task with "
            f"{'it' if len(missing) == 1 else 'them'} behind the mixins"
        )


def given_parameters(
    task: Any, exclude: set[str] | frozenset[str] = frozenset(), instead: Mapping[str, Any] | None = None
) -> dict[str, str]:
    """The parameters of a task that a command has to give, as they are typed; `instead`: other values of some.

    One at its default is left out, unless the settings of luigi change that default: the text of a default need not be
    one that its parameter can read (upstream's `resume_epoch = IntParameter(False)`).
    """
    settings, texts = luigi.configuration.get_config(), task.to_str_params()
    interactive = set(getattr(task, "interactive_params", ()))
    given = {}
    for name, parameter in task.get_params():
        if name in exclude or name in interactive or name not in texts:
            continue
        family = task.get_task_family()
        is_set = any(settings.has_option(family, option) for option in (name, name.replace("_", "-")))
        value = instead[name] if instead and name in instead else getattr(task, name)
        if is_set or value != parameter._default:
            given[name] = str(parameter.serialize(value)) if instead and name in instead else texts[name]
    return given


def refuse_nodes(nodes: int) -> None:
    """ParameterError for several machines without a job."""
    if nodes > 1:
        raise ParameterError(
            f"--nodes {nodes} without a facility profile: this command starts ranks on its own machine only, "
            "also inside an allocation of SLURM: add --slurm PROFILE, or leave --nodes at 1"
        )
