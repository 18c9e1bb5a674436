"""How far a run came, in files that survive it: its journal, and the state of its parts.

A child process writes a journal, one JSON object a line: {"start": key}, {"end": key},
{"lost": key, "reason": ...}. From it the next process knows what ended the one before. The runner
keeps what is complete, for which sources and on which device, in gpu-state.json. Standard library
only.
"""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

FILE = "gpu-state.json"
COMPLETE, PARTIAL, FAILED, SKIPPED = "complete", "partial", "failed", "skipped"
STOPPED = "the process ended or hung here"


class Journal:
    """Appends to a file; with None, writes nothing.

    Attributes:
        lost: keys that ended an earlier process, with the reason that it gave, or STOPPED.
    """

    def __init__(self, path: Path | None) -> None:
        self.path = path
        self.lost: dict[str, str] = {}
        for entry in read_lines(path):
            if "start" in entry:
                self.lost[entry["start"]] = STOPPED
            elif "lost" in entry:
                self.lost[entry["lost"]] = entry["reason"]
            elif self.lost.get(entry["end"]) == STOPPED:
                del self.lost[entry["end"]]

    @contextlib.contextmanager
    def entry(self, key: str) -> Iterator[None]:
        """Around what may end the process."""
        self._write({"start": key})
        try:
            yield
        finally:
            self._write({"end": key})

    def lose(self, key: str, reason: str) -> None:
        """`key` broke the process, which ends now; it is not to be tried again."""
        self._write({"lost": key, "reason": reason})

    def _write(self, entry: dict[str, Any]) -> None:
        if self.path is not None:
            with self.path.open("a", encoding="utf-8") as file:
                file.write(json.dumps(entry) + "\n")


def read_lines(path: Path | None) -> Iterator[dict[str, Any]]:
    """The objects of a file that processes append to; a line that was cut off is left out."""
    text = path.read_text(encoding="utf-8") if path is not None and path.exists() else ""
    for line in text.splitlines():
        with contextlib.suppress(json.JSONDecodeError):
            yield json.loads(line)


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
        """Writes gpu-state.json at once: a cut-off leaves the one before."""
        temporary = folder / f".{FILE}.partial"
        temporary.write_text(json.dumps(asdict(self), indent=1) + "\n", encoding="utf-8")
        os.replace(temporary, folder / FILE)


def load(folder: Path, device: dict[str, str]) -> State | None:
    """The state in a folder if it is of this device, else None."""
    try:
        saved = json.loads((folder / FILE).read_text(encoding="utf-8"))
        parts = {name: Progress(**part) for name, part in saved["parts"].items()}
        return State(device, parts) if saved["device"] == device else None
    except (OSError, json.JSONDecodeError, KeyError, TypeError):
        return None  # none, or not written by this version: everything is done anew
