"""The exact Barlow Twins loss at the cost of its smallest matrix, from the Kernel Hub.

barlow_fast's loss with its Triton and plain-torch kernels. The package on PyPI adds native CPU
kernels, data loading, training and evaluation.
"""

from . import reference
from .explain import Plan, explain
from .losses.barlow_twins import BarlowTwinsLoss, Terms, barlow_twins_loss
from .microbatch import backward_in_microbatches
from .warming import warmup

__all__ = [
    "BarlowTwinsLoss",
    "Plan",
    "Terms",
    "backward_in_microbatches",
    "barlow_twins_loss",
    "explain",
    "reference",
    "warmup",
]
