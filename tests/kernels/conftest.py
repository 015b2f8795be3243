"""The checks in `interpreted/` run in processes of their own, which `test_interpreter.py` starts."""

from __future__ import annotations

import os

collect_ignore = [] if os.environ.get("TRITON_INTERPRET") == "1" else ["interpreted"]
