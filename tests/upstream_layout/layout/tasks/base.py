"""Paths below `$DATA_PATH`, and the parameters that all tasks have."""

import os

import law
import luigi


class BaseTask(law.Task):
    debug = luigi.BoolParameter(default=False)
    config = luigi.Parameter(default="default")
    verbose = luigi.BoolParameter(default=False)
    seed = luigi.IntParameter(default=123456)

    def store_parts(self):
        parts = (self.__class__.__name__, self.config)
        return (*parts, "debug") if self.debug else parts

    def local_path(self, *path):
        return os.path.join(os.environ["DATA_PATH"], *self.store_parts(), *map(str, path))

    def local_target(self, *path, **kwargs):
        return law.LocalFileTarget(self.local_path(*path), **kwargs)
