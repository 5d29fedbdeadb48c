"""From ROOT files to a training set, and from there to batches."""
