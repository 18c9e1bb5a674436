"""Images and weights that are small enough to be made in a test."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from PIL import Image

from barlow_fast.data.decoding import decode_pixels, picture
from barlow_fast.models import build_encoder


def write_images(folder: Path, count: int, side: int = 24, suffix: str = "png") -> Path:
    """Noise, under the names 00.png, 01.png, ..."""
    folder.mkdir(parents=True, exist_ok=True)
    generator = np.random.default_rng(count)
    for number in range(count):
        pixels = generator.integers(0, 256, (side, side, 3), np.uint8)
        Image.fromarray(pixels).save(folder / f"{number:02d}.{suffix}")
    return folder


def decode(encoded: bytes, identity: str, index: int = -1, **options: int) -> Image.Image:
    """`decode_pixels` as a PIL image."""
    return picture(decode_pixels(encoded, identity, index, **options).pixels)


def write_encoder(path: Path, channels: int, mean: float = 0.3, std: float = 0.2) -> Path:
    """A checkpoint of a run, with the least that its encoder is read from."""
    state = build_encoder("small", channels=channels, image_size=8, widths=(4, 8)).state_dict()
    image = {"channels": channels, "size": 8, "mean": [mean] * channels, "std": [std] * channels}
    content = {
        "format": "barlow_fast.pretrain",
        "version": 1,
        "config": {"encoder": "small", "encoder_widths": [4, 8], "encoder_grid": 2},
        "image": image,
        "model": {f"encoder.{name}": value for name, value in state.items()},
    }
    torch.save(content, path)
    return path
