"""Adversarial inputs: jets moved a little so that a tagger errs; for training and for inference."""
