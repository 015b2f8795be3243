"""gemkit: the open framework for GEM-style ads foundation models."""

__version__ = "0.1.0"
