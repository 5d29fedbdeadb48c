"""Jets with known answers, for tests, docs and benchmarks."""
