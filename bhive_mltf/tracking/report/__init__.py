"""The page of a training: one HTML file that needs no network and no script, made from the journal."""
