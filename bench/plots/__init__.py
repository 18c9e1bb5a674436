"""The figures: one module each, found by being in this folder, drawn from rows alone.

A module of a figure defines `pictures(files)`: what it would draw, given the rows of each file by
name, as `drawing.Picture` with all its data; none where there are no rows for it. Nothing is drawn
until the SVG of a picture is requested, so knowing what should be there needs no matplotlib.
"""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Mapping, Sequence
from types import ModuleType

from bench.plots.drawing import Picture
from bench.results import Row


def pictures(files: Mapping[str, Sequence[Row]]) -> list[Picture]:
    """All figures of all files, in the order of a page: speed first, then the rest."""
    return [picture for module in _modules().values() for picture in module.pictures(files)]


def _modules() -> dict[str, ModuleType]:
    names = (module.name for module in pkgutil.iter_modules(__path__))
    found = {name: importlib.import_module(f"{__name__}.{name}") for name in names}
    figures = {name: module for name, module in found.items() if hasattr(module, "pictures")}
    return dict(sorted(figures.items(), key=lambda item: item[1].PLACE))
