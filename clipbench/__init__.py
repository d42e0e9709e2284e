"""clipbench: a reproducible benchmark suite for gradient clipping in deep learning."""

__version__ = "0.1.0"
