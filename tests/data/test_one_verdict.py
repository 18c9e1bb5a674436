"""Damaged files get one verdict: that of `decode`, under every loader and command."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from photographs import MEAN, STD, cropping, encoded, photograph
from pictures import pixels
from sources import decode
from test_half_images import HALF, HEIGHT, WHOLE, WIDTH, jpeg_cut, png

from barlow_fast.data import ViewLoader, Views
from barlow_fast.data.check import bad_images
from barlow_fast.data.decoding import check
from barlow_fast.data.faults import BadImageError
from barlow_fast.data.pack import pack
from barlow_fast.data.rendering import dali
from barlow_fast.data.sources import FolderSource

Damage = Callable[[bytes, np.random.Generator], bytes]


def overwritten(file: bytes, generator: np.random.Generator) -> bytes:
    """512 random bytes in the middle."""
    damaged, at = bytearray(file), len(file) // 2
    damaged[at : at + 512] = generator.bytes(512)[: len(file) - at]
    return bytes(damaged)


def flipped(file: bytes, generator: np.random.Generator) -> bytes:
    damaged, scan = bytearray(file), file.rindex(b"\xff\xda") + 20
    for at in generator.integers(scan, len(file), 4):
        damaged[at] = int(generator.integers(256))
    return bytes(damaged)


def cut(file: bytes, generator: np.random.Generator) -> bytes:
    return jpeg_cut(file, generator.uniform(0.1, 0.95))


def without_some_restarts(file: bytes, generator: np.random.Generator) -> bytes:
    places = [found.start() for found in re.finditer(rb"\xff[\xd0-\xd7]", file)]
    first, second = sorted(generator.choice(len(places), 2, replace=False).tolist())
    return file[: places[first]] + file[places[second] :]


KINDS = {
    "baseline": {},
    "4:4:4": {"subsampling": 0},
    "restarts": {"restart_marker_blocks": 8},
    "progressive": {"progressive": True},
    "gray": {},
}
FAMILIES = [
    *((kind, damage) for kind in KINDS for damage in (overwritten, flipped, cut)),
    ("restarts", without_some_restarts),
]


def damaged(kind: str, damage: Damage, count: int) -> list[bytes]:
    """Files made from pieces of photographs, about 250 x 250 pixels."""
    generator = np.random.default_rng(7)
    files = []
    for _ in range(count):
        image = photograph(int(generator.integers(3)))
        height, width = generator.integers(200, 300, 2).tolist()
        top = int(generator.integers(0, image.height - height + 1))
        left = int(generator.integers(0, image.width - width + 1))
        piece = image.crop((left, top, left + width, top + height))
        piece = piece.convert("L") if kind == "gray" else piece
        files.append(damage(encoded(piece, quality=90, **KINDS[kind]), generator))
    return files


def refused(read: Callable[[bytes, str], object], file: bytes) -> bool:
    try:
        read(file, "picture")
    except BadImageError:
        return True
    return False


@pytest.mark.parametrize(("kind", "damage"), FAMILIES)
def test_the_quick_check_refuses_what_decoding_refuses(kind: str, damage: Damage):
    files = damaged(kind, damage, 20)
    expected = [refused(decode, file) for file in files]
    assert [refused(check, file) for file in files] == expected
    if damage is overwritten:
        assert sum(expected) > 3
    if damage is cut and kind != "progressive":
        assert all(expected)


@pytest.mark.parametrize("name", list(WHOLE))
def test_the_quick_check_refuses_no_whole_image(name: str):
    image = decode(WHOLE[name], name)
    # A TIFF that is turned has the size of its header until it is decoded.
    if name != "tiff, turned":
        assert check(WHOLE[name], name) == (image.height, image.width, "")


PIECE = photograph(2).crop((40, 60, 271, 239))
GOOD = {
    **{f"subsampling {n}": encoded(PIECE, subsampling=n) for n in (0, 1, 2)},
    "progressive": encoded(PIECE, progressive=True),
    "optimized": encoded(PIECE, optimize=True),
    "restarts": encoded(PIECE, restart_marker_blocks=3),
    "restarts by row": encoded(PIECE, restart_marker_rows=1, subsampling=0),
    "thumbnail": encoded(PIECE, exif=b"Exif\0\0" + encoded(PIECE.resize((40, 30)))),
    "color profile": encoded(PIECE, icc_profile=bytes(70_000)),
    "comment": encoded(PIECE, comment=b"\xff\xd9 \xff\xda" * 9000),
    "bytes after the end": encoded(PIECE) + b"\xff\x12more\xff\xd8",
    "two pictures": encoded(PIECE, "MPO", save_all=True, append_images=[PIECE]),
    "CMYK": encoded(PIECE.convert("CMYK")),
    "gray": encoded(PIECE.convert("L")),
    "RGB": encoded(PIECE, keep_rgb=True),
    "fill bytes": re.sub(rb"(?=\xff[\xc4\xda\xd9])", b"\xff\xff", encoded(PIECE)),
    **{
        f"{height} x {width}": encoded(PIECE.resize((width, height)))
        for height, width in ((1, 1), (1, 90), (90, 1), (7, 9), (8, 8), (17, 33))
    },
}


@pytest.mark.parametrize("name", list(GOOD))
def test_good_files_of_every_kind_pass(name: str):
    image = decode(GOOD[name], name)
    assert check(GOOD[name], name) == (image.height, image.width, "")


def test_loaders_and_commands_agree(tmp_path: Path):
    """With DALI where it is installed: what Pillow refuses is never trained on."""
    folder = tmp_path / "in"
    folder.mkdir()
    files = [
        file
        for kind in ("baseline", "restarts", "progressive")
        for damage in (overwritten, flipped, cut)
        for file in damaged(kind, damage, 6)
    ]
    files += [png(pixels(HEIGHT, WIDTH, 3), HALF), *GOOD.values()]
    for number, file in enumerate(files):
        (folder / f"{number:03}.img.jpg").write_bytes(file)
    source = FolderSource(folder)
    verdict = [number for number, file in enumerate(files) if refused(decode, file)]
    assert 20 < len(verdict) < len(files) - 20
    found = list(bad_images(source, 0))
    assert [bad.index for bad in found if not bad.suspect] == verdict
    suspect = {(bad.index, bad.reason) for bad in found if bad.suspect}
    assert len(suspect) > 10
    packed = pack(source, tmp_path / "out", on_bad_image="skip", workers=0)
    assert packed.left_out == len(verdict)
    views = Views("crops", (cropping(16), cropping(16)), MEAN, STD)
    for loader in ("pil", "dali"):
        if loader == "dali" and dali.why_unusable() is not None:
            continue
        with ViewLoader(
            source,
            views,
            len(source),
            loader=loader,
            workers=0 if loader == "pil" else 1,
            on_bad_image="skip",
        ) as batches:
            trained = [index for batch in batches for index in batch.index.tolist()]
            assert sorted(bad.index for bad in batches.bad_images) == verdict, loader
            named = {(bad.index, bad.reason) for bad in batches.suspect_images}
            assert named == suspect, loader
        assert sorted(trained) == sorted(set(range(len(files))) - set(verdict)), loader
