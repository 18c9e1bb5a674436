"""The figures, drawn from rows alone: a module declares what a figure selects from them
(`figure.Figure`), `drawing` draws it. Nothing is drawn until the SVG of a picture is requested, so
knowing what should be there needs no matplotlib."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from bench.plots import bars, lines, speedup
from bench.plots.figure import Picture
from bench.results import Row

# In the order of a page: speed first, then the rest.
FIGURES = (
    speedup.FIGURE, lines.ROOFLINE, lines.MEMORY, lines.RANKS, *bars.FIGURES, lines.MODELLED,
)  # fmt: skip


def pictures(files: Mapping[str, Sequence[Row]]) -> list[Picture]:
    """All figures of all files."""
    return [picture for figure in FIGURES for picture in figure.pictures(files)]
