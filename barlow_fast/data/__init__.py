"""Images and their views: data sets in memory, the view specification, its rendering."""

import importlib.util

if importlib.util.find_spec("numpy") is None:
    raise ModuleNotFoundError(
        "barlow_fast.data, training and evaluation need numpy: pip install 'barlow-fast[train]'",
        name="numpy",
    )

from .datasets import DATASETS, ImageDataset, load
from .loader import Batch, ViewLoader
from .order import Position, Shard, batches, batches_per_epoch, order
from .presets import PRESETS, Views
from .render import render
from .views import ViewParameters, ViewSpecification, draw
from .windows import windows

__all__ = [
    "DATASETS",
    "PRESETS",
    "Batch",
    "ImageDataset",
    "Position",
    "Shard",
    "ViewLoader",
    "ViewParameters",
    "ViewSpecification",
    "Views",
    "batches",
    "batches_per_epoch",
    "draw",
    "load",
    "order",
    "render",
    "windows",
]
