"""Histograms and figures of the input features of a training set."""
