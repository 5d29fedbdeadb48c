"""Jobs on a SLURM cluster.

Outside the job: a profile describes the site (`profiles`), a spec one job (`job`), `script` makes the batch script of
both, `client` talks to the scheduler, `dispatch` submits once, `follow` polls, `record` keeps the job beside the
outputs, `outcome` judges how it ended. Inside the job: `batch_step`.
"""
