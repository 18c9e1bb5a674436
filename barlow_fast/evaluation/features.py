"""Features of whole data sets."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ..data.render import normalise


@torch.inference_mode()
def extract_features(
    encoder: nn.Module,
    images: Tensor,
    mean: float,
    std: float,
    device: torch.device | str = "cpu",
    chunk: int = 1024,
) -> Tensor:
    """The encoder's features of images as they are, without augmentation.

    Args:
        encoder: maps (B, C, H, W) float32 to (B, F); run in evaluation mode, and left in the mode
            it had.
        images: (N, C, H, W) uint8, on any device.
        mean, std: what the encoder was trained with, where white is 1.
        device: where the encoder is.
        chunk: images per pass.

    Returns:
        (N, F) float32 on `device`.
    """
    was_training = encoder.training
    encoder.eval()
    try:
        parts = [encoder(normalise(part.to(device), mean, std)) for part in images.split(chunk)]
    finally:
        encoder.train(was_training)
    return torch.cat(parts).float()
