"""API and worker as processes that start in no time: forked from one that has imported all they need."""

import multiprocessing
import os
import sys
from pathlib import Path

PRELOADED = ["uvicorn", "bhive_mltf.gateway.app", "bhive_mltf.gateway.worker.main", "tests.gateway.children"]


def start(command, config, log, variables):
    """Start `python -m bhive_mltf.gateway --config CONFIG COMMAND...`; the process."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(PRELOADED)
    process = context.Process(target=_run, args=(command, str(config), str(log), variables), daemon=True)
    process.start()
    return process


def _run(command, config, log, variables):
    from bhive_mltf.gateway.__main__ import main

    os.setsid()
    os.environ.update(variables)
    with Path(log).open("ab") as file:
        for number in (1, 2):
            os.dup2(file.fileno(), number)
    sys.exit(main(["--config", config, *command]))
