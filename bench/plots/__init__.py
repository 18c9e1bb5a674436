"""The figures: one module each, found by being in this folder, drawn from rows alone.

A module of a figure defines `pictures(files)`: what it would draw, given the rows of each file by
name, as `drawing.Picture` with all its data; none where there are no rows for it. Nothing is drawn
until a picture is asked for its SVG, so knowing what should be there needs no matplotlib.
"""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Mapping, Sequence

from bench.plots.drawing import Picture
from bench.results import Row


def pictures(files: Mapping[str, Sequence[Row]]) -> list[Picture]:
    """All figures of all files, in the order of a page: speed first, then the rest."""
    modules = (
        importlib.import_module(f"{__name__}.{m.name}") for m in pkgutil.iter_modules(__path__)
    )
    figures = sorted(
        (module for module in modules if hasattr(module, "pictures")),
        key=lambda module: (module.PLACE, module.__name__),
    )
    return [picture for module in figures for picture in module.pictures(files)]
