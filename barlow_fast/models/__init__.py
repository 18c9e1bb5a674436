"""Networks: encoders, the projector, and the pair of views that passes through them."""

from .projector import Projector
from .small import SmallEncoder
from .twins import BarlowTwinsModel, build_model

__all__ = ["BarlowTwinsModel", "Projector", "SmallEncoder", "build_model"]
