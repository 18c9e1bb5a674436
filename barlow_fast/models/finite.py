"""Weights and features that are no numbers: refused, since scores of them look like scores."""

from __future__ import annotations

import torch
from torch import Tensor, nn


def is_finite(values: Tensor) -> bool:
    """Whether no value is NaN or infinite; reads them once and copies nothing."""
    # NaN passes through both. A tensor of the device "meta" has no values.
    return (
        not values.numel()
        or values.is_meta
        or all(bool(end.isfinite()) for end in values.aminmax())
    )


def check_finite(values: Tensor, words: str) -> None:
    """Refuses (N, F) or (F,) values that are not finite.

    Args:
        values: of features.
        words: what they are, for the message.

    Raises:
        RuntimeError: as described; the message says where the first is.
    """
    if is_finite(values):
        return
    first = (~torch.isfinite(values)).nonzero()[0].tolist()
    place = (f"row {first[0]}, " if len(first) > 1 else "") + f"dimension {first[-1]}"
    raise RuntimeError(f"{words} are not finite (NaN or infinite): {place} first")


def check_weights(encoder: nn.Module) -> None:
    """Refuses an encoder with weights or buffers that are not finite.

    Raises:
        RuntimeError: as described; the message names the first.
    """
    for name, value in encoder.state_dict().items():
        if isinstance(value, Tensor) and value.is_floating_point() and not is_finite(value):
            raise RuntimeError(
                f"the encoder's weights are not finite (NaN or infinite), {name} first: its "
                "training diverged, or its file is damaged"
            )
