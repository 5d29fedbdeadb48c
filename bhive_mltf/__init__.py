"""Training of jet taggers for B-Hive: data sets, models, distributed training, tracking."""

__version__ = "0.1.0"
