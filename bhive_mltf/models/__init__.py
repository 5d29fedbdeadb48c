"""Taggers: what they read, how they are built, their registry."""
