"""What runs inside a job: `python -m bhive_mltf.slurm.batch_step SPEC` is the batch step.

It checks the nodes, starts the ranks (or the command), and decides how the job ends: done, requeued, or failed, with
the reason in the job's outcome file. Nothing here imports torch or law.
"""
