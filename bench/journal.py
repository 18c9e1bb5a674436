"""What a child process is doing, in a file that survives it.

One JSON object a line: {"start": key}, {"end": key, ...}, {"lost": key, "reason": ...}. From it the
next process knows what the one before had finished and what ended it; from its growth the runner
knows that the child does not hang. Needs nothing beyond the standard library.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

STOPPED = "the process ended or hung here"


class Journal:
    """Appends to a file; with None, writes nothing."""

    def __init__(self, path: Path | None) -> None:
        self.path = path

    def start(self, key: str) -> None:
        """`key` is begun."""
        self._write({"start": key})

    def end(self, key: str, **fields: Any) -> None:
        """`key` is finished, with whatever is to be known of it."""
        self._write({"end": key} | fields)

    def lose(self, key: str, reason: str) -> None:
        """`key` broke the process, which ends now; it is not to be tried again."""
        self._write({"lost": key, "reason": reason})

    def beat(self) -> None:
        """What was begun is still running."""
        self._write({})

    def _write(self, entry: dict[str, Any]) -> None:
        if self.path is not None:
            with self.path.open("a", encoding="utf-8") as file:
                file.write(json.dumps(entry) + "\n")


def entries(path: Path | None) -> list[dict[str, Any]]:
    """All lines; one cut off by a killed process is left out."""
    if path is None or not path.exists():
        return []
    found = []
    for line in path.read_text(encoding="utf-8").splitlines():
        try:
            found.append(json.loads(line))
        except json.JSONDecodeError:
            continue
    return found


def finished(path: Path | None) -> dict[str, dict[str, Any]]:
    """The fields of every key that ended."""
    return {entry["end"]: entry for entry in entries(path) if "end" in entry}


def lost(path: Path | None) -> dict[str, str]:
    """Keys that ended a process, with the reason: said by it, or STOPPED where it could not."""
    known = entries(path)
    ended = finished(path)
    found = {e["start"]: STOPPED for e in known if "start" in e and e["start"] not in ended}
    return found | {e["lost"]: e["reason"] for e in known if "lost" in e}
