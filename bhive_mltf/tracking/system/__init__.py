"""Load of a node while it trains: the machine, the job's processes and the job's GPUs. No mlflow and no torch."""
