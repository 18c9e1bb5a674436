"""Time until the first result: import, first call, compilation."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from bench.plots import bars, drawing
from bench.plots.drawing import Data, Picture
from bench.results import Row

PLACE = 7
KEYS = ("median_ms", "p20_ms", "p80_ms")


def pictures(files: Mapping[str, Sequence[Row]]) -> list[Picture]:
    """One for each file."""
    found = []
    for name, rows in drawing.rows_of(files, "startup"):
        panels = bars.panels(rows, KEYS, drawing.titles(), lambda row: str(row.get("case")))
        if panels:
            data = {"machine": drawing.device(rows), "panels": panels}
            caption = f"Milliseconds until the first result, case by case ({data['machine']})."
            picture = f"startup-{drawing.stem(name)}"
            found.append(Picture(picture, "startup", name, caption, data, draw))
    return found


def draw(data: Data) -> Any:
    """Bars of every case."""
    text = f"{data['machine']}. Shorter is better; lines from p20 to p80."
    return bars.draw(data["panels"], "Milliseconds until the first result", text, "ms")
