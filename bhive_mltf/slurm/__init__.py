"""Jobs on a SLURM cluster.

Outside the job: a profile describes the site (`profiles`), a spec one job (`job`), `script` joins them in one text,
`client` talks to the scheduler, `dispatch` submits once and follows, `record` remembers beside the outputs.
Inside the job: `inside`. A cluster on this machine, for development and tests: `lab`.
"""
