"""What all tasks share: upstream's common parameters, paths below `$DATA_PATH`, how they check and report."""

from __future__ import annotations

import os
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any, Self

import law
import luigi
from luigi.cmdline_parser import CmdlineParser

from bhive_mltf.errors import BhiveError, ParameterError, RecordMismatchError
from bhive_mltf.law import messages
from bhive_mltf.law.parameters import technical

if TYPE_CHECKING:
    from bhive_mltf.config import Config

# luigi's options that say where tasks are scheduled
SCHEDULERS = ("local_scheduler", "scheduler_host", "scheduler_url", "default_scheduler_host", "default_scheduler_url")
_DEFAULTS = (
    ("local_scheduler", "True", SCHEDULERS),
    ("no_lock", "True", ("no_lock",)),
    ("log_level", "INFO", ("log_level",)),
)


class BaseTask(law.Task):
    """Upstream's base task: parameters, `store_parts()`, targets.

    Wrong input is refused while luigi asks the task for its dependencies, see `deps()`. `requires()`, branch maps and
    outputs never raise for it, so that `--print-status` and the like show what there is.
    """

    debug = luigi.BoolParameter(default=False, description="one file per process and few chunks; own path part 'debug'")
    terminal_plot = luigi.BoolParameter(default=False, description="draw the curves in the terminal too")
    config = luigi.Parameter(default="default", description="config name without .yml, or a path to one")
    verbose = luigi.BoolParameter(default=False, description="say more")
    seed = luigi.IntParameter(default=123456, description="seed of everything that is random")
    strict_config = technical(
        luigi.BoolParameter, default=False, description="refuse a config with a key that nothing reads"
    )

    exclude_index = True
    _held = False
    _checked = False

    if TYPE_CHECKING:

        @classmethod
        def req(cls, inst: law.Task, **kwargs: Any) -> Self:
            """The task of this class with the parameters of another one that both have."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        messages.install()
        schedule_here_by_default()

    def check(self) -> None:
        """Hook: raise a BhiveError for parameters that cannot be. Imports nothing heavy: `requires()` asks it too."""

    def check_to_run(self) -> None:
        """Hook: what else is checked before anything runs."""

    def deps(self) -> list[law.Task]:
        """The tasks that this one needs, for luigi's scheduler; first of all, wrong input is refused.

        Also that of all needed tasks that are not complete: luigi would begin with those of them that are right.

        Raises
        ------
        BhiveError : what is wrong, in one sentence. luigi then does not schedule the task, nor what it needs.
        """
        if self._checked:
            return list(super().deps())
        self.check()
        self.check_to_run()
        needed = list(super().deps())
        for task in needed:
            if isinstance(task, BaseTask) and not task.complete():
                task.deps()
        self._checked = True
        return needed

    def is_refused(self) -> bool:
        """Whether `check()` refuses the task; shows why, in one line. For `requires()`, which never raises."""
        try:
            self.check()
        except BhiveError as error:
            messages.show_once(str(error))
            return True
        return False

    def store_parts(self) -> tuple[str, ...]:
        """Path parts below `$DATA_PATH`."""
        stem = os.path.splitext(os.path.basename(self.config))[0] if self.config.endswith((".yml", ".yaml")) else None  # noqa: PTH119, PTH122
        parts = (self.__class__.__name__, stem or self.config)
        return (*parts, "debug") if self.debug else parts

    def local_path(self, *path: str) -> str:
        """`$DATA_PATH` + store parts + `path`."""
        data_path = os.environ.get("DATA_PATH")
        if not data_path:
            raise ParameterError("DATA_PATH is not set: run 'source setup.sh', or export the folder for all outputs")
        return os.path.join(os.path.abspath(data_path), *self.store_parts(), *path)  # noqa: PTH100, PTH118 - law's str paths

    def local_target(self, *path: str, **kwargs: Any) -> law.LocalFileTarget:
        """A file below `local_path()`."""
        return law.LocalFileTarget(self.local_path(*path), **kwargs)

    def load_config(self) -> Config:
        """The config of this command, with the reference flavour that was asked for, or else recorded.

        What an earlier version made with this config keeps what that version read in it (`config.as_recorded`).
        """
        from bhive_mltf import config

        loaded = config.load(self.config, strict=self.strict_config)
        for warning in loaded.warnings:
            messages.warn_once(warning)
        flavour = getattr(self, "reference_flavour", "") or self.recorded("reference_flavour")
        loaded = config.with_reference(loaded, flavour) if flavour else loaded
        return config.as_recorded(loaded, self.recorded("config")) or loaded

    def recorded(self, name: str) -> str:  # noqa: ARG002
        """What the training set of this task was made with; empty when that is not known.

        name : `config` (its digest), or `reference_flavour`, which is recorded when it was given by parameter.
        """
        return ""

    def result_parameters(self) -> dict[str, Any]:
        """What decides the result and is not in the path; held against the directory's record (W17)."""
        return {}

    def hold_against_record(self) -> None:
        """Refuse a parameter that differs from what the result was made with; say when the recorded one holds.

        Raises
        ------
        RecordMismatchError : names the recorded and the asked value.
        """
        from bhive_mltf.files import records

        record = records.Record.read(self.local_path())
        if record is None or self._held:
            return
        self._held = True
        asked = self.result_parameters()
        config = asked.pop("config", None)
        # parameters first: one of them may be what changes the config
        notes = records.compare(record.parameters, asked, self.defaults(asked), self.local_path())
        if config is not None and record.parameters.get("config", config) != config:
            raise RecordMismatchError(
                f"{self.local_path()} was made with another content of config '{self.config}': give the result another "
                "version, or the config another name"
            )
        for note in notes:
            self.say(f"note: {note}")

    def defaults(self, names: Iterable[str]) -> dict[str, Any]:
        """The defaults of those names that are parameters."""
        parameters = dict(self.get_params())
        return {name: parameters[name]._default for name in names if name in parameters}

    def _repr_params(self, all_params: bool = False) -> dict[str, Any]:
        """Shown in messages: only what differs from its default."""
        shown: dict[str, Any] = super()._repr_params(all_params=all_params)
        defaults = self.defaults(shown)
        return {name: value for name, value in shown.items() if all_params or value != defaults.get(name)}

    def say(self, text: str) -> None:
        """Show a line to the person at the terminal."""
        self.publish_message(text, scheduler=False)


def schedule_here_by_default() -> None:
    """Where the user named no scheduler, this command is its own; without luigi's lock, since directories have theirs.

    luigi's notes for debugging are left out. It reads these options once it has made the task of the command line.
    """
    parser = CmdlineParser.get_instance()
    if parser is None:
        return
    config = luigi.configuration.get_config()
    typed = vars(parser.known_args)
    for option, value, others in _DEFAULTS:
        if not any(config.has_option("core", name) or typed.get(f"core_{name}") for name in others):
            config.set("core", option, value)
