"""The training engine: plan, launcher, ranks, checkpoints."""
