"""What watches a training without changing it: progress, warnings, MLflow, traces."""
