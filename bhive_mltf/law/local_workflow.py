"""A local workflow whose branches run in a pool of processes."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import law
from law.workflow.local import LocalWorkflowProxy

from bhive_mltf.law.messages import refuse_early


class PooledLocalWorkflowProxy(LocalWorkflowProxy):
    """Runs what is left to do at once; what law then starts branch by branch is complete already."""

    @refuse_early(bool)
    def complete(self) -> bool:
        if self.task.is_needless():
            return True
        self.task.input_files()  # an empty list is refused, and not done
        return bool(super().complete())

    def run(self) -> Iterator[Any]:
        branches = [branch for branch in self.task.get_branch_tasks().values() if not branch.complete()]
        self.task.run_branches(branches)
        yield from super().run()


class PooledLocalWorkflow(law.LocalWorkflow):
    """A local workflow that hands its unfinished branches to `run_branches()`."""

    workflow_proxy_cls = PooledLocalWorkflowProxy
    exclude_index = True

    def run_branches(self, branches: list[Any]) -> None:
        """Run these branches; raise the first error."""
        for branch in branches:
            branch.run()
