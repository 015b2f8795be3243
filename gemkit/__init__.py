"""gemkit: the open framework for GEM-style ads foundation models."""

import time

__version__ = "0.1.0"

IMPORTED_S = time.perf_counter()
"""When this process began to load gemkit, where the system does not tell when the process began."""
