"""Predictions, ROC curves, working points and their figures."""
