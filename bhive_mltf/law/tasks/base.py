"""What all tasks share: upstream's common parameters, paths below `$DATA_PATH`, how they report."""

from __future__ import annotations

import os
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

import law
import luigi

from bhive_mltf.errors import ParameterError, RecordMismatchError
from bhive_mltf.law import messages

if TYPE_CHECKING:
    from bhive_mltf.config import Config

messages.install()
law.Task.event_handler(luigi.Event.START)(messages.begin_running)


class BaseTask(law.Task):
    """Upstream's base task: parameters, `store_parts()`, targets."""

    debug = luigi.BoolParameter(default=False, description="one file per process and few chunks; own path part 'debug'")
    terminal_plot = luigi.BoolParameter(default=False, description="draw the curves in the terminal too")
    config = luigi.Parameter(default="default", description="config name without .yml, or a path to one")
    verbose = luigi.BoolParameter(default=False, description="say more")
    seed = luigi.IntParameter(default=123456, description="seed of everything that is random")

    exclude_index = True
    _held = False

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
        """The config of this command, with the reference flavour that was asked for, or else recorded."""
        from bhive_mltf import config

        loaded = config.load(self.config)
        for warning in loaded.warnings:
            messages.warn_once(warning)
        flavour = getattr(self, "reference_flavour", "") or self.recorded_flavour()
        return config.with_reference(loaded, flavour) if flavour else loaded

    def recorded_flavour(self) -> str:
        """The reference flavour that the data set of this task was made with, when it was given by parameter."""
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
        if config is not None and record.parameters.get("config", config) != config:
            raise RecordMismatchError(
                f"{self.local_path()} was made with another content of config '{self.config}': give the result another "
                "version, or the config another name"
            )
        for note in records.compare(record.parameters, asked, self.defaults(asked), self.local_path()):
            self.say(f"note: {note}")

    def defaults(self, names: Iterable[str]) -> dict[str, Any]:
        """The defaults of those names that are parameters."""
        parameters = dict(self.get_params())
        return {name: parameters[name]._default for name in names if name in parameters}

    def _repr_params(self, all_params: bool = False) -> dict[str, Any]:
        """Shown in messages: only what differs from its default."""
        shown = super()._repr_params(all_params=all_params)
        defaults = self.defaults(shown)
        return {name: value for name, value in shown.items() if all_params or value != defaults.get(name)}

    def say(self, text: str) -> None:
        """Show a line to the person at the terminal."""
        self.publish_message(text, scheduler=False)

    def _print_deps(self, args: Any) -> Any:
        with messages.looking():
            return super()._print_deps(args)

    def _print_status(self, args: Any) -> Any:
        with messages.looking():
            return super()._print_status(args)

    def _print_output(self, args: Any) -> Any:
        with messages.looking():
            return super()._print_output(args)

    def _fetch_output(self, args: Any) -> Any:
        with messages.looking():
            return super()._fetch_output(args)

    def _remove_output(self, args: Any) -> Any:
        with messages.looking():
            return super()._remove_output(args)
