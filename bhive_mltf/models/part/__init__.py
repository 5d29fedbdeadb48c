"""The Particle Transformers: the paper's, and B-Hive's first and second."""
