"""Steps whose loss or gradient is not finite: recorded, replayed, traced."""
