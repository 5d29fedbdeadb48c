"""Weights that bring the flavours to one spectrum in pt and eta."""
