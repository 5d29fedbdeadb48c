"""Studies: trainings with parameters that Optuna proposes."""
