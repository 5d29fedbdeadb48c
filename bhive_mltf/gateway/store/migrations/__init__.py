"""The tables from release to release, one revision after the other (Alembic)."""
