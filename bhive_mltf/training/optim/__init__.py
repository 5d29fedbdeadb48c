"""Optimisers, learning rates, and what happens to gradients."""
