"""Checkpoints of B-Hive's own model classes: the names of their weights, and conversion in both directions."""
