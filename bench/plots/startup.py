"""Time until the first result: imports, first calls, compilers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from bench.plots import bars, drawing
from bench.plots.drawing import Data, Picture
from bench.results import Row

PLACE = 7
KEYS = ("median_ms", "p20_ms", "p80_ms")
WORDS = {
    "import": "Import of torch, and what each package adds to it",
    "first-call": "First call",
    "second-call": "Second call",
    "triton-kernels": "Triton kernels, compiled ahead of time",
    "compiler-cold": "First call under torch.compile, nothing on disk",
    "compiler-warm": "First call under torch.compile, compiled code on disk",
}


def pictures(files: Mapping[str, Sequence[Row]]) -> list[Picture]:
    """One for each file."""
    from bench.suites.startup import titles

    found = []
    for name, rows in drawing.rows_of(files, "startup"):
        panels = bars.panels(rows, KEYS, titles(), _heading)
        if panels:
            data = {"machine": drawing.device(rows), "panels": panels}
            caption = f"Milliseconds until the first result, case by case ({data['machine']})."
            picture = f"startup-{drawing.stem(name)}"
            found.append(Picture(picture, "startup", name, caption, data, draw))
    return found


def _heading(row: Row) -> str:
    case = str(row.get("case"))
    shape = f", {row['n']} × {row['d']}" if row.get("n") and row.get("d") else ""
    return WORDS.get(case, case) + shape


def draw(data: Data) -> Any:
    """Bars of every case."""
    text = f"{data['machine']}. Fresh processes; shorter is better; lines from p20 to p80."
    return bars.draw(data["panels"], "Milliseconds until the first result", text, "ms")
