"""Uploaded projects: what an archive may hold, and what of it is run."""
