"""Custom features of a config: a closed grammar of elementwise arithmetic on branches."""
