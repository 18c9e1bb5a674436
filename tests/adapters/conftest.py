"""The processes of tests/distributed, for adapters across ranks."""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1] / "distributed"))

from ranks import pool

__all__ = ["pool"]
