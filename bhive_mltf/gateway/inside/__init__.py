"""What runs on the nodes of a job: the launcher outside the sandbox, and what it puts inside.

The standard library only, besides the names of files that `bhive_mltf.slurm` reads.
"""
