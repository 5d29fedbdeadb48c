"""Several processes that train or predict together: launchers, process groups, signals, failures, files."""
