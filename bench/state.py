"""What is complete, for which sources and on which device: gpu-state.json.

Standard library only.
"""

from __future__ import annotations

import json
import os
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

FILE = "gpu-state.json"
COMPLETE, PARTIAL, FAILED, SKIPPED = "complete", "partial", "failed", "skipped"


@dataclass
class Progress:
    """One part: how far it came, for which sources.

    Attributes:
        status: COMPLETE, PARTIAL (time was up), FAILED or SKIPPED (it cannot run here).
        sources: fingerprint of what it depends on.
        detail: a few words for the summary.
        seconds: of the last run.
        finished: items that need not be done again, with what is to be known of them.
    """

    status: str = PARTIAL
    sources: str = ""
    detail: str = ""
    seconds: float = 0.0
    finished: dict[str, dict[str, Any]] = field(default_factory=dict)

    def settled(self, sources: str) -> bool:
        """Whether nothing is left to do. A failed part is tried again."""
        return self.status == COMPLETE and self.sources == sources


@dataclass
class State:
    """All parts on one device."""

    device: dict[str, str]
    parts: dict[str, Progress] = field(default_factory=dict)

    def part(self, name: str, sources: str) -> Progress:
        """The progress of a part; a new one where there is none for these sources."""
        found = self.parts.get(name)
        if found is None or found.sources != sources:
            found = self.parts[name] = Progress(sources=sources)
        return found

    def save(self, folder: Path) -> None:
        """Writes gpu-state.json at once, so that a cut-off leaves the state before."""
        temporary = folder / f".{FILE}.partial"
        temporary.write_text(json.dumps(asdict(self), indent=1) + "\n", encoding="utf-8")
        os.replace(temporary, folder / FILE)


def load(folder: Path, device: dict[str, str]) -> State | None:
    """The state in a folder if it is of this device, else None."""
    path = folder / FILE
    if not path.exists():
        return None
    try:
        saved = json.loads(path.read_text(encoding="utf-8"))
        if saved["device"] != device:
            return None
        return State(device, {name: Progress(**p) for name, p in saved["parts"].items()})
    except (json.JSONDecodeError, KeyError, TypeError):
        return None  # not written by this version: everything is done anew
