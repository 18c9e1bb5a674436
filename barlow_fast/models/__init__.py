"""Networks: encoders, the projector, and the pair of views that passes through them."""

from .encoders import Architecture, build_encoder, stages
from .projector import Projector
from .recomputing import checkpoint_activations
from .small import SmallEncoder
from .twins import BarlowTwinsModel, build_twins

__all__ = [
    "Architecture",
    "BarlowTwinsModel",
    "Projector",
    "SmallEncoder",
    "build_encoder",
    "build_twins",
    "checkpoint_activations",
    "stages",
]
