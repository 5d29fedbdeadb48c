"""From a training set to the batches of an epoch."""
