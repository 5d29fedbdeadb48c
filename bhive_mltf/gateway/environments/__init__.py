"""Environments that are built from what a project asks for: by uv, from wheels of one index, each content once."""
