"""A model whose training steps take as long as a test needs, and lead to the weights of DeepJet."""

import os
import time

from bhive_mltf.models.deepjet import DeepJet

SECONDS = "BHIVE_TEST_STEP_S"


class SlowDeepJet(DeepJet):
    """DeepJet that waits in each training step of a job's first attempt, where its profile says so."""

    def forward(self, batch):
        if self.training and not os.environ.get("SLURM_RESTART_COUNT"):
            time.sleep(float(os.environ.get(SECONDS, "0")))
        return super().forward(batch)
