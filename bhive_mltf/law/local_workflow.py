"""A local workflow whose branches run in a pool of processes."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import law
from law.workflow.local import LocalWorkflowProxy


class PooledLocalWorkflowProxy(LocalWorkflowProxy):
    """Runs what is left to do at once; what law then starts branch by branch is complete already."""

    # law keeps this in a manager process, which a killed command leaves behind; nothing is yielded here.
    _local_workflow_has_yielded = False

    def run(self) -> Iterator[Any]:
        branches = [branch for branch in self.task.get_branch_tasks().values() if not branch.complete()]
        self.task.run_branches(branches)
        # All are complete: law need not start them one by one.
        self.task.local_workflow_require_branches = True
        yield from super().run()


class PooledLocalWorkflow(law.LocalWorkflow):
    """A local workflow that hands its unfinished branches to `run_branches()`."""

    workflow_proxy_cls = PooledLocalWorkflowProxy
    exclude_index = True

    def run_branches(self, branches: list[Any]) -> None:
        """Run these branches; raise the first error."""
        for branch in branches:
            branch.run()
