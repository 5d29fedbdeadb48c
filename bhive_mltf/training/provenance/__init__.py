"""From ROOT files to models and back, and trainings done once more."""
