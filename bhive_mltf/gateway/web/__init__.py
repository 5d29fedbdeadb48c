"""The page: sign in, own jobs with their log, limits, and the list of the operators. It works without scripts too."""
