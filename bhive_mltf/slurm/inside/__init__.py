"""Names of `bhive_mltf.slurm.batch_step` up to version 0.1, for jobs that were queued or started with it."""
