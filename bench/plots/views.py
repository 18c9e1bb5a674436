"""Images per second of loaders of two views."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from bench.plots import bars, drawing
from bench.plots.drawing import Data, Picture
from bench.results import Row
from bench.views.feeds import CASES, OFFICIAL, TITLES

PLACE = 6
KEYS = ("median_per_s", "p20_per_s", "p80_per_s")


def pictures(files: Mapping[str, Sequence[Row]]) -> list[Picture]:
    """One for each file, of whole loaders; a kernel alone counts something else."""
    found = []
    for name, rows in drawing.rows_of(files, "views"):
        rows = [row for row in rows if row.get("unit") == "images"]
        panels = bars.panels(rows, KEYS, TITLES, _heading)
        if panels:
            data = {"machine": drawing.device(rows), "panels": panels}
            caption = f"{_headline(data)} ({data['machine']}, two views an image)."
            picture = f"views-{drawing.stem(name)}"
            found.append(Picture(picture, "views", name, caption, data, draw))
    return found


def _heading(row: Row) -> str:
    case = CASES.get(row.get("case"))
    title = case.title if case else str(row.get("case"))
    return f"{title[:1].upper()}{title[1:]}"


def _headline(data: Data) -> str:
    ratios = []
    for panel in data["panels"]:
        ours = [bar[2] for bar in panel["bars"] if drawing.is_ours(bar[0])]
        others = [bar[2] for bar in panel["bars"] if bar[0] == OFFICIAL]
        if ours and others:
            ratios.append(max(ours) / others[0])
    if not ratios:
        return "Images per second of loaders of two views"
    span = [drawing.times(min(ratios)), drawing.times(max(ratios))]
    return (
        f"Loaders make {' to '.join(dict.fromkeys(span))} the official recipe's images per second"
    )


def draw(data: Data) -> Any:
    """Bars of every case."""
    text = f"{data['machine']}. Two views an image, decoded or from memory; lines from p20 to p80."
    return bars.draw(data["panels"], _headline(data), text, "images/s")
