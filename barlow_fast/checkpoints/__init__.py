"""Weights of pretrained encoders: read from this library's checkpoints and those of others,
exported for others."""

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
