"""From accepted jets to a training set: staged files, weights, global order, shards."""
