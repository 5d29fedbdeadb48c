"""Trained models for other programs: ONNX, what its inputs are, and a scorer that needs neither law nor torch."""
