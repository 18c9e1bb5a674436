"""Images whose data end validly before the image does, in every format that can be short so: each
is refused, and no whole image is."""

from __future__ import annotations

import io
import struct
import zlib

import numpy as np
import pytest
from pictures import Image, encode, photographs, pixels, write_folder
from sources import decode
from typer.testing import CliRunner

from barlow_fast.cli.app import app
from barlow_fast.data.faults import BadImageError
from barlow_fast.data.sources import FolderSource

HEIGHT, WIDTH = 64, 64
PICTURE = pixels(HEIGHT, WIDTH)
# Origin and step, down and across, of the seven passes of an interlaced PNG.
PASSES = ((0, 8, 0, 8), (0, 8, 4, 8), (4, 8, 0, 4), (0, 4, 2, 4), (2, 4, 0, 2), (0, 2, 1, 2))
PASSES += ((1, 2, 0, 1),)


def png(image: np.ndarray, rows: int, interlaced: bool = False, depth: int = 8) -> bytes:
    """The first `rows` rows of the data of a PNG, with all its checksums."""

    def chunk(kind: bytes, content: bytes) -> bytes:
        checksum = struct.pack(">I", zlib.crc32(kind + content))
        return struct.pack(">I", len(content)) + kind + content + checksum

    colour = {1: 0, 2: 4, 3: 2, 4: 6}[image.shape[2]]
    head = struct.pack(">IIBBBBB", image.shape[1], image.shape[0], depth, colour, 0, 0, interlaced)
    parts = [image[top::down, left::across] for top, down, left, across in PASSES]
    lines = [row for part in parts for row in part if row.size] if interlaced else list(image)
    if depth == 16:
        lines = [row.astype(">u2") * 257 for row in lines]
    data = b"".join(b"\0" + row.tobytes() for row in lines[: rows or None])
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        (chunk(b"IHDR", head), chunk(b"IDAT", zlib.compress(data)), chunk(b"IEND", b""))
    )


def rows_of(image: np.ndarray, interlaced: bool) -> int:
    if not interlaced:
        return len(image)
    parts = [image[top::down, left::across] for top, down, left, across in PASSES]
    return sum(len(part) for part in parts if part.size)


def tiff_with(encoded: bytes, **tags: int) -> bytes:
    """A little-endian TIFF with other numbers in some tags."""
    numbers = {"height": 257, "rows_per_strip": 278}
    changed = bytearray(encoded)
    (at,) = struct.unpack_from("<I", changed, 4)
    (count,) = struct.unpack_from("<H", changed, at)
    for entry in range(at + 2, at + 2 + 12 * count, 12):
        tag, kind = struct.unpack_from("<HH", changed, entry)
        for name, value in tags.items():
            if tag == numbers[name]:
                struct.pack_into("<I" if kind == 4 else "<H", changed, entry + 8, value)
    return bytes(changed)


def jpeg_cut(encoded: bytes, share: float) -> bytes:
    scan = encoded.index(b"\xff\xda")
    cut = scan + int((len(encoded) - scan) * share)
    return encoded[:cut].rstrip(b"\xff") + b"\xff\xd9"


def gif_of_half() -> bytes:
    half = bytearray(encode(Image.fromarray(PICTURE[: HEIGHT // 2]).quantize(64), "GIF"))
    at = half.index(b"\x2c" + bytes(4) + struct.pack("<H", WIDTH))
    for place in (8, at + 7):
        struct.pack_into("<H", half, place, HEIGHT)
    return bytes(half)


def webp_cut(**options: object) -> bytes:
    whole = encode(PICTURE, "WEBP", **options)
    cut = bytearray(whole[: len(whole) // 4 * 2])
    struct.pack_into("<I", cut, 4, len(cut) - 8)
    struct.pack_into("<I", cut, 16, len(cut) - 20)
    return bytes(cut)


def bmp_run_length(rows: int) -> bytes:
    data = b"".join(bytes((WIDTH, row, 0, 0)) for row in range(rows)) + b"\0\1"
    palette = b"".join(bytes((i, i, i, 0)) for i in range(256))
    start = 54 + len(palette)
    sizes = (40, WIDTH, HEIGHT, 1, 8, 1, len(data), 0, 0, 256, 0)
    head = struct.pack("<IHHI", start + len(data), 0, 0, start)
    return b"BM" + head + struct.pack("<IiiHHIIiiII", *sizes) + palette + data


def tiff(compression: str, rows: int = HEIGHT // 2) -> bytes:
    return encode(Image.fromarray(PICTURE[:rows]), "TIFF", compression=compression)


HALF = HEIGHT // 2
SHORT = {
    **{f"png of {n} channels": png(pixels(HEIGHT, WIDTH, n), HALF) for n in (1, 2, 3, 4)},
    "png of 16 bits": png(pixels(HEIGHT, WIDTH, 1), HALF, depth=16),
    "png but one row": png(PICTURE, HEIGHT - 1),
    "png, black": png(np.zeros_like(PICTURE), HALF),
    "png, the color of the fill": png(np.full_like(PICTURE, 165), HALF),
    "png of one column": png(PICTURE[:, :1], HALF),
    "png, interlaced": png(PICTURE, 90, interlaced=True),
    "png, interlaced but one row": png(PICTURE, rows_of(PICTURE, True) - 1, interlaced=True),
    "png, interlaced, of one row": png(PICTURE[:1, :9], 3, interlaced=True),
    "jpeg": jpeg_cut(encode(PICTURE, "JPEG", quality=90), 0.6),
    "jpeg, gray": jpeg_cut(encode(PICTURE[..., 0], "JPEG", quality=90), 0.6),
    "jpeg, optimized": jpeg_cut(encode(PICTURE, "JPEG", quality=90, optimize=True), 0.5),
    "jpeg, progressive": jpeg_cut(encode(PICTURE, "JPEG", quality=90, progressive=True), 0.02),
    "jpeg, cmyk": jpeg_cut(encode(Image.fromarray(PICTURE).convert("CMYK"), "JPEG"), 0.5),
    "jpeg with restarts": jpeg_cut(encode(PICTURE, "JPEG", restart_marker_blocks=4), 0.6),
    "jpeg with a thumbnail": jpeg_cut(encode(PICTURE, "JPEG", exif=b"Exif\0\0\xff\xd9"), 0.6),
    "photograph": jpeg_cut(photographs()[0], 0.7),
    "tiff": tiff_with(tiff("raw"), height=HEIGHT),
    "tiff, one strip": tiff_with(tiff("raw"), height=HEIGHT, rows_per_strip=HEIGHT),
    **{
        f"tiff, {kind}{', one strip' if 'rows_per_strip' in tags else ''}": tiff_with(
            tiff(kind), height=HEIGHT, **tags
        )
        for kind in ("tiff_lzw", "tiff_adobe_deflate", "packbits", "jpeg")
        for tags in ({}, {"rows_per_strip": HEIGHT})
    },
    "gif": gif_of_half(),
    "webp": webp_cut(quality=80),
    "webp, lossless": webp_cut(lossless=True),
    "bmp": encode(PICTURE, "BMP")[: HEIGHT * WIDTH * 2],
    "bmp, run lengths": bmp_run_length(HALF),
    "ppm": b"P6 64 64 255\n" + PICTURE[:HALF].tobytes(),
    "ppm, plain": b"P3 64 64 255\n" + b" ".join(b"%d" % v for v in PICTURE[:HALF].flat),
    "pbm": b"P4 64 64\n" + bytes(8 * HALF),
}


@pytest.mark.parametrize("name", list(SHORT))
def test_half_an_image_is_refused(name: str):
    with pytest.raises(BadImageError):
        decode(SHORT[name], "half")


GRAY = np.full_like(PICTURE, 128)
WHOLE = {
    **{
        f"png, {n} channels, interlaced {interlaced}": png(pixels(HEIGHT, WIDTH, n), 0, interlaced)
        for n in (1, 2, 3, 4)
        for interlaced in (False, True)
    },
    "png of 16 bits": png(pixels(HEIGHT, WIDTH, 1), 0, depth=16),
    **{f"png, all {v}": encode(np.full_like(PICTURE, v)) for v in (0, 90, 128, 165, 255)},
    **{f"png, all {v}, gray": encode(np.full((9, 9), v, np.uint8)) for v in (90, 165)},
    **{f"png, one bit, {v}": encode(Image.new("1", (70, 9), v)) for v in (0, 1)},
    "png of one pixel": encode(np.full((1, 1, 3), 165, np.uint8)),
    "png with a palette": encode(Image.fromarray(PICTURE).quantize(256)),
    "png of one row, interlaced": png(np.full_like(PICTURE[:1, :9], 165), 0, True),
    "jpeg, gray to the end": encode(GRAY, "JPEG"),
    "jpeg, gray to the end, progressive": encode(GRAY, "JPEG", progressive=True),
    "jpeg, one channel": encode(GRAY[..., 0], "JPEG"),
    "jpeg with restarts": encode(GRAY, "JPEG", restart_marker_blocks=4),
    "jpeg, cmyk": encode(Image.new("CMYK", (40, 40), (127, 127, 127, 127)), "JPEG"),
    "tiff": encode(np.full_like(PICTURE, 165), "TIFF"),
    "tiff, turned": encode(PICTURE[:40], "TIFF", tiffinfo={274: 6}),
    **{f"tiff, {k}": tiff(k, HEIGHT) for k in ("jpeg", "tiff_lzw", "packbits")},
    "tiff, jpeg, strips": encode(pixels(100, 70), "TIFF", compression="jpeg", tiffinfo={278: 16}),
    "gif": encode(np.full_like(PICTURE, 165), "GIF"),
    "bmp, run lengths": bmp_run_length(HEIGHT),
}


@pytest.mark.parametrize("name", list(WHOLE))
def test_whole_images_are_not(name: str):
    found = np.asarray(decode(WHOLE[name], "whole"))
    expected = Image.open(io.BytesIO(WHOLE[name]))
    expected.load()
    if not expected.mode.startswith("I"):
        np.testing.assert_array_equal(found, np.asarray(expected.convert("RGB")))


def test_every_prefix_of_the_rows_is_refused():
    """Of random pictures, so that any row may happen to look like the fill."""
    generator = np.random.default_rng(0)
    for _ in range(200):
        height, width, channels = generator.integers(1, 20, 3)
        image = generator.choice(
            [0, 90, 165, 255], (height, width, (channels % 4) + 1), p=[0.1, 0.1, 0.7, 0.1]
        ).astype(np.uint8)
        interlaced = bool(generator.integers(2))
        total = rows_of(image, interlaced)
        decode(png(image, total, interlaced), "whole")
        for rows in range(1, total):
            with pytest.raises(BadImageError):
                decode(png(image, rows, interlaced), "half")


def test_check_pack_and_loader_agree(tmp_path):
    files = {"half.png": SHORT["png of 3 channels"], "half.jpg": SHORT["jpeg"]}
    folder = write_folder(tmp_path / "in", {**files, "whole.png": encode(PICTURE)})
    output = CliRunner().invoke(app, ["data", "check", str(folder)]).output
    assert "2 of 3 images cannot be read" in output
    assert output.count("its data end before the image does") == 2
    packing = ["data", "pack", str(folder), str(tmp_path / "out"), "--on-bad-image", "skip"]
    assert "1 image (0 resized, 2 left out)" in CliRunner().invoke(app, packing).output
    source = FolderSource(folder)
    for index in (0, 1):
        with pytest.raises(BadImageError, match="a part of it is missing"):
            source.image(index)
