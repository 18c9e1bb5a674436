"""Image files of every kind, good and bad, for the tests of sources."""

from __future__ import annotations

import io
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest

Image = pytest.importorskip("PIL.Image")


def pixels(height: int = 24, width: int = 36, channels: int = 3, seed: int = 0) -> np.ndarray:
    """(H, W, C) uint8: a smooth picture, which JPEG keeps nearly as it is."""
    y, x = np.mgrid[0:height, 0:width]
    phase = np.random.default_rng(seed).uniform(0, 6, channels)
    waves = np.sin(x[..., None] / 9 + phase) * np.cos(y[..., None] / 7 + phase)
    return (127.5 + 110 * waves).round().astype(np.uint8)


def encode(image: np.ndarray | Image.Image, form: str = "PNG", **options: object) -> bytes:
    """The bytes of a file in a format."""
    if isinstance(image, np.ndarray):
        image = Image.fromarray(image)
    stream = io.BytesIO()
    image.save(stream, form, **options)
    return stream.getvalue()


def photographs() -> list[bytes]:
    """The two JPEG photographs that come with scikit-learn, 427 x 640 pixels."""
    datasets = pytest.importorskip("sklearn.datasets")
    folder = Path(datasets.__file__).parent / "images"
    return [(folder / name).read_bytes() for name in ("china.jpg", "flower.jpg")]


def bomb(height: int = 60_000, width: int = 60_000) -> bytes:
    """A PNG of a few bytes whose header promises gigabytes."""
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))
        for kind, body in (
            (b"IHDR", struct.pack(">IIBBBBB", width, height, 1, 0, 0, 0, 0)),
            (b"IDAT", zlib.compress(bytes(1000))),
            (b"IEND", b""),
        )
    )


def write_folder(root: Path, files: dict[str, bytes]) -> Path:
    """Files by relative path below `root`."""
    for name, content in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
    return root
