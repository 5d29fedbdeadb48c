"""The database of API and worker."""
