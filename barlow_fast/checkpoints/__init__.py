"""Weights of pretrained encoders: read from checkpoints of this and other libraries, and exported
for other libraries."""

from .exporting import FORMATS, export
from .official import load_official, save_official, to_official
from .pretrained import Pretrained, load_encoder, load_projector

__all__ = [
    "FORMATS",
    "Pretrained",
    "export",
    "load_encoder",
    "load_official",
    "load_projector",
    "save_official",
    "to_official",
]
