"""The gateway: trainings handed in over HTTPS by people who have a sign-on and no account on the cluster.

An API that the internet reaches (`app`), and a worker on a submit host (`worker`) that alone talks to SLURM; they share
one database and one folder. What runs on the nodes is in `inside`; `mlflow_auth` runs in the tracking server.
"""
