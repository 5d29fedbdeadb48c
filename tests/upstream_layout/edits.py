"""The lines of the layout that each patch of the merge kit changes, before and after."""

import shutil
from pathlib import Path

LAYOUT = Path(__file__).parent / "layout"
TASK = "tasks/training.py"
MODEL = "utils/models/base_model.py"
DATASET = "utils/torch/LZ4Dataset.py"
IMPORTS = "from tasks.base import BaseTask\n"
BEST = '            "best_model": self.local_target("best_model.pt"),\n'
LAST = '            "model": self.local_target(f"model_{self.epochs - 1 + self.extend_training}.pt"),\n'
TRACK = "            tracking.log_epoch(t, loss_training, acc_training, loss_validation, acc_validation)\n"
BASES = "AttackDependency, TrainingDependency, DatasetDependency, BaseTask)"
ALL_JETS = "numbers[2:].reshape(-1, int(numbers[1]))"

# patch -> (file, before, after)
EDITS = {
    0: [
        (TASK, "resume_epoch = luigi.IntParameter(default=False)", "resume_epoch = luigi.IntParameter(default=0)"),
        (TASK, BEST, BEST + LAST),
    ],
    1: [
        (TASK, IMPORTS, f"from bhive_mltf.law import MLflowMixin\n{IMPORTS}"),
        (TASK, "class TrainingTask(", "class TrainingTask(MLflowMixin, "),
        (MODEL, "import numpy as np\n", "import numpy as np\nfrom bhive_mltf import tracking\n"),
        (MODEL, "            checkpoint = {\n", f"{TRACK}            checkpoint = {{\n"),
    ],
    2: [
        (TASK, IMPORTS, f"from bhive_mltf.law import SlurmMixin\n{IMPORTS}"),
        (TASK, "class TrainingTask(", "class TrainingTask(SlurmMixin, "),
        ("law.cfg", "local_scheduler: True\n", "local_scheduler: True\nno_lock: True\n"),
    ],
    3: [
        (TASK, IMPORTS, f"from bhive_mltf.law import RanksMixin\n{IMPORTS}"),
        (TASK, BASES, f"RanksMixin, {BASES}"),
        (TASK, "model = model.to(self.device)", "model = self.ranks.prepare(model.to(self.device))"),
        (TASK, "batch_size=self.batch_size,", "batch_size=self.ranks.batch_size(self.batch_size),"),
        (MODEL, "import numpy as np\n", "import numpy as np\nfrom bhive_mltf.ranks import replicas\n"),
        (MODEL, "in enumerate(dataloader):", "in enumerate(replicas.current().even(dataloader)):"),
        (
            MODEL,
            "= losses / (b + 1), accuracy / (b + 1)",
            "= replicas.current().mean(losses / (b + 1), accuracy / (b + 1))",
        ),
        (MODEL, "= losses / n, accuracy / n", "= replicas.current().mean(losses / n, accuracy / n, weight=n)"),
        (DATASET, "import numpy as np\n", "import numpy as np\nfrom bhive_mltf.ranks import replicas\n"),
        (DATASET, f"jets = {ALL_JETS}", f"jets = replicas.current().rows({ALL_JETS})"),
    ],
}


def write_layout(folder, *patches):
    """The layout in a folder, with these patches; returns the folder."""
    shutil.copytree(LAYOUT, folder, ignore=shutil.ignore_patterns("__pycache__"))
    for patch in patches:
        for name, before, after in EDITS[patch]:
            text = (folder / name).read_text()
            assert text.count(before) == 1, (patch, name, before)
            (folder / name).write_text(text.replace(before, after))
    return folder
