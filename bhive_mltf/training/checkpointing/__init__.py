"""Checkpoints: what they hold, when and how they are written, which one a training continues from."""
