"""Wrapper tasks that run a whole chain."""
