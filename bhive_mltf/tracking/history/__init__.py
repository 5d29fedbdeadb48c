"""Runs of the past: what was recorded of them, and how they differ."""
