"""From ROOT files to accepted jets."""
