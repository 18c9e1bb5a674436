"""How far a run came, in files that survive it: its journal, and the state of its parts.

A child process writes a journal, one JSON object a line: {"start": key}, {"end": key},
{"lost": key, "reason": ...}. From it the next process knows what the one before had finished and
what ended it; from its growth the runner knows that the child does not hang. The runner keeps what
is complete, for which sources and on which device, in gpu-state.json. Standard library only.
"""

from __future__ import annotations

import contextlib
import json
import os
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

FILE = "gpu-state.json"
COMPLETE, PARTIAL, FAILED, SKIPPED = "complete", "partial", "failed", "skipped"
STOPPED = "the process ended or hung here"


class Journal:
    """Appends to a file; with None, writes nothing."""

    def __init__(self, path: Path | None) -> None:
        self.path = path

    def start(self, key: str) -> None:
        """`key` is begun."""
        self._write({"start": key})

    def end(self, key: str) -> None:
        """`key` is finished."""
        self._write({"end": key})

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


def lost(path: Path | None) -> dict[str, str]:
    """Keys that ended a process, with the reason that it gave, or STOPPED where it gave none."""
    found: dict[str, str] = {}
    text = path.read_text(encoding="utf-8") if path is not None and path.exists() else ""
    for line in text.splitlines():
        with contextlib.suppress(json.JSONDecodeError):  # cut off by the end of a process
            entry = json.loads(line)
            if "start" in entry:
                found[entry["start"]] = STOPPED
            elif "end" in entry:
                found.pop(entry["end"], None)
            elif "lost" in entry:
                found[entry["lost"]] = entry["reason"]
    return found


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
        """Writes gpu-state.json."""
        write_at_once(folder / FILE, json.dumps(asdict(self), indent=1) + "\n")


def write_at_once(path: Path, text: str) -> None:
    """Writes a file so that a cut-off leaves the one before."""
    temporary = path.with_name(f".{path.name}.partial")
    temporary.write_text(text, encoding="utf-8")
    os.replace(temporary, path)


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
