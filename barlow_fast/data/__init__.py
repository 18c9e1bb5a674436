"""Images and their two views: data sets in memory, the view specification, its rendering."""

from .datasets import DATASETS, ImageDataset, load
from .render import render
from .views import PRESETS, ViewParameters, ViewSpecification, draw, order

__all__ = [
    "DATASETS",
    "PRESETS",
    "ImageDataset",
    "ViewParameters",
    "ViewSpecification",
    "draw",
    "load",
    "order",
    "render",
]
