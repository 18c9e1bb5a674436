"""The suites: one module each, found by being in this folder.

A suite defines `command`, its command line; `SECTION`, the heading of its tables; and
`tables(rows)`, the Markdown of one machine's rows, empty if there is nothing to show.
`origin(rows, name)` replaces the paragraph about the machine where there is none.
"""

from __future__ import annotations

import importlib
import pkgutil
from types import ModuleType


def discover() -> dict[str, ModuleType]:
    """All suites by name."""
    return {
        m.name: importlib.import_module(f"{__name__}.{m.name}")
        for m in pkgutil.iter_modules(__path__)
    }
