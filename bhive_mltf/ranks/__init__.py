"""What it is to be one of several processes that train or predict together."""
