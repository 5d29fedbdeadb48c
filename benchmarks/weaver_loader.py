"""weaver-core's own data loader, timed; runs in its environment and answers lines of JSON (see peer.py).

Each request is {"workers": N, "how": HOW, "batches": N}: an epoch (with "memory": that many batches), answered with
jets and seconds. HOW is the way of weaver to fetch: "all" (the whole epoch at once), "files" (one file at a time)
or "memory" (read once, kept). Its default, a hundredth of each file at a time, is for files that are far larger.
"""

from __future__ import annotations

import contextlib
import json
import sys
import time
from functools import lru_cache
from importlib.metadata import version
from pathlib import Path

import torch
from torch.utils.data import DataLoader
from weaver.utils.dataset import SimpleIterDataset

FETCH = {
    "all": {"fetch_by_files": False, "fetch_step": 1},
    "files": {"fetch_by_files": True, "fetch_step": 1},
    "memory": {"fetch_by_files": False, "fetch_step": 1, "in_memory": True},
}


@lru_cache(None)
def loader(folder, batch_size, workers, how):
    files = {"_": sorted(map(str, Path(folder).glob("*.root")))}
    config = str(Path(__file__).with_name("weaver_inputs.yaml"))
    dataset = SimpleIterDataset(files, config, batch_size=batch_size, for_training=True, name="train", **FETCH[how])
    # as in weaver's train.py
    options = {"batch_size": batch_size, "drop_last": True, "pin_memory": torch.cuda.is_available()}
    return dataset.config, DataLoader(dataset, num_workers=workers, persistent_workers=workers > 0, **options)


@lru_cache(None)
def endless(folder, batch_size, workers):
    return iter(loader(folder, batch_size, workers, "memory")[1])


def run(folder, batch_size, workers, how, batches):
    config, source = loader(folder, batch_size, workers, how)
    if how == "memory":
        found = endless(folder, batch_size, workers)
        next(found)
        source = (next(found) for _ in range(batches))
    jets = 0
    start = time.perf_counter()
    for inputs, labels, _ in source:
        # what train.py takes of a batch
        tensors = [inputs[name] for name in config.input_names]
        label = labels[config.label_names[0]].long()
        assert len(tensors) == 3
        jets += len(label)
    return {"jets": jets, "seconds": time.perf_counter() - start, "shape": list(tensors[0].shape)}


def main():
    folder, batch_size = sys.argv[1], int(sys.argv[2])
    torch.set_num_threads(1)
    answers = sys.stdout
    with contextlib.redirect_stdout(sys.stderr):
        about = {"weaver-core": version("weaver-core"), "torch": torch.__version__}
        print(json.dumps(about), file=answers, flush=True)
        for line in sys.stdin:
            print(json.dumps(run(folder, batch_size, **json.loads(line))), file=answers, flush=True)


if __name__ == "__main__":
    main()
