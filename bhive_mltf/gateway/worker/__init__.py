"""The one process that writes states and talks to SLURM. It has no open port."""
