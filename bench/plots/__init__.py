"""The figures, drawn from rows alone: a module declares what a figure selects and how it is read
(`figure.Figure`), `drawing` draws it. Nothing is drawn until the SVG of a picture is requested, so
knowing what should be there needs no matplotlib."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from bench.plots import ablations, bars, memory, ranks, roofline, scaling, speedup
from bench.plots.figure import Picture
from bench.results import Row

# In the order of a page: speed first, then the rest.
FIGURES = (
    speedup.FIGURE, roofline.FIGURE, memory.FIGURE, ranks.FIGURE, *bars.FIGURES, scaling.FIGURE,
    ablations.FIGURE,
)  # fmt: skip


def pictures(files: Mapping[str, Sequence[Row]]) -> list[Picture]:
    """All figures of all files."""
    return [picture for figure in FIGURES for picture in figure.pictures(files)]
