"""Hand-written kernels of the paper's Particle Transformer on a CPU."""
