"""Images per second of whole pretraining steps."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from bench.plots import bars, drawing
from bench.plots.drawing import Data, Picture
from bench.results import Row
from bench.training.cases import CASES, LIGHTLY, OFFICIAL, OURS, TITLES

PLACE = 5
KEYS = ("median_per_s", "p20_per_s", "p80_per_s")


def pictures(files: Mapping[str, Sequence[Row]]) -> list[Picture]:
    """One for each file."""
    found = []
    for name, rows in drawing.rows_of(files, "train"):
        panels = bars.panels(rows, KEYS, TITLES, _heading)
        if panels:
            data = {"machine": drawing.device(rows), "panels": panels}
            picture = f"training-{drawing.stem(name)}"
            caption = f"{_headline(data)} ({data['machine']}, whole steps, two views an image)."
            found.append(Picture(picture, "train", name, caption, data, draw))
    return found


def _heading(row: Row) -> str:
    case = CASES.get(row.get("case"))
    title = case.title if case else str(row.get("case"))
    return f"{title[:1].upper()}{title[1:]}, batch {row.get('n')}, {row.get('dtype')}"


def _headline(data: Data) -> str:
    parts = []
    for panel in data["panels"]:
        rates = {bar[0]: bar[2] for bar in panel["bars"]}
        for other in (LIGHTLY, OFFICIAL):
            if OURS in rates and other in rates:
                parts.append((other, rates[OURS] / rates[other]))
    words = []
    for other, ending in ((LIGHTLY, "lightly's"), (OFFICIAL, "the official recipe's")):
        ratios = [ratio for name, ratio in parts if name == other]
        if ratios:
            span = sorted({drawing.times(min(ratios)), drawing.times(max(ratios))})
            words.append(f"{' to '.join(span)} {ending}")
    if not words:
        return "Images per second of whole pretraining steps"
    return f"Pretraining runs at {' and '.join(words)} images per second"


def draw(data: Data) -> Any:
    """Bars of every case."""
    text = f"{data['machine']}. Whole steps, two views an image; lines from p20 to p80."
    return bars.draw(data["panels"], _headline(data), text, "images/s")
