"""One MLflow run per training."""
