"""Conversion of any source to tar shards (`barlow-fast data pack`)."""

from __future__ import annotations

import io
import json
import os
import re
import tarfile
import zlib
from collections.abc import Callable
from dataclasses import dataclass, replace
from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

from ..files import write_whole
from ..terminal import printable
from .decoding import FORMATS, decode_pixels, picture, pillow
from .faults import BadImage, BadImageError, BadImages, OnBadImage, guard
from .parallel import in_order
from .sources import ArraySource, Source
from .sources.shard_index import Rows, rows_of, scan, write
from .sources.shards import CLASSES, PARTIAL
from .sources.tar import BLOCK, read_at

if TYPE_CHECKING:
    from PIL import Image

EXTENSIONS = {
    "JPEG": "jpg",
    "MPO": "jpg",
    "PNG": "png",
    "BMP": "bmp",
    "WEBP": "webp",
    "TIFF": "tif",
    "GIF": "gif",
    "PPM": "ppm",
}

# Of a sample's name in the shard, which keeps the end of the file's name.
LONGEST_STEM = 60


@dataclass(frozen=True)
class Packed:
    """The result of `pack`."""

    images: int
    resized: int
    left_out: int
    shards: int
    bytes: int  # of all shards
    suspect: int = 0  # packed although decoded with a warning


@dataclass(frozen=True)
class Sample:
    """One image, ready to be written."""

    content: bytes
    extension: str
    height: int
    width: int
    resized: bool
    suspect: BadImage | None = None


@dataclass(frozen=True)
class Prepare:
    """Reads, decodes and, where asked to, resizes one image."""

    source: Source
    size: int | None
    max_side: int | None
    quality: int

    def __call__(self, index: int) -> Sample | BadImage:
        try:
            return self._sample(index)
        except BadImageError as error:
            return error.image

    def _sample(self, index: int) -> Sample:
        if isinstance(self.source, ArraySource):
            image = self.source.image(index)
            smaller = _resized(image, self.size, self.max_side)
            # Pixels that never were a JPEG stay exact.
            return _sample_of(smaller, "PNG", smaller is not image)
        encoded, identity = self.source.encoded(index), self.source.identity(index)
        # Decoded in any case, so that shards hold no image that cannot be read.
        decoded = decode_pixels(encoded, identity, index, max_pixels=self.source.max_pixels)
        image = picture(decoded.pixels)
        suspect = decoded.suspect(index, identity)
        smaller = _resized(image, self.size, self.max_side)
        if smaller is not image:
            # A JPEG has at most 65500 pixels a side.
            with guard(identity, index):
                sample = _sample_of(smaller, "JPEG", True, quality=self.quality)
            return replace(sample, suspect=suspect)
        with pillow().open(io.BytesIO(encoded), formats=FORMATS) as header:
            extension = EXTENSIONS[header.format]
        return Sample(encoded, extension, image.height, image.width, False, suspect)


def _resized(image: Image.Image, size: int | None, max_side: int | None) -> Image.Image:
    """The image with a shorter side of at most `size` pixels and a longer one of at most
    `max_side`; itself when it is none too large."""
    limits = [(size, min(image.size)), (max_side, max(image.size))]
    limits = [(limit, side) for limit, side in limits if limit is not None and side > limit]
    if not limits:
        return image
    # The side that decides comes out exact; the other one is rounded to nearest.
    limit, whole = min(limits, key=lambda pair: Fraction(*pair))
    sides = (max((2 * side * limit + whole) // (2 * whole), 1) for side in image.size)
    return image.resize(tuple(sides), pillow().Resampling.LANCZOS)


def _sample_of(image: Image.Image, form: str, resized: bool, **options: int) -> Sample:
    stream = io.BytesIO()
    image.save(stream, form, **options)
    return Sample(stream.getvalue(), EXTENSIONS[form], image.height, image.width, resized)


def pack(
    source: Source,
    target: Path,
    *,
    size: int | None = None,
    max_side: int | None = None,
    shard_bytes: int = 2**28,
    quality: int = 95,
    on_bad_image: OnBadImage = "error",
    workers: int | None = None,
    progress: Callable[[int], None] | None = None,
) -> Packed:
    """Writes shards `shard-000000.tar` and on, each with its index, and the names of the classes.

    Images keep the source's order, since an epoch's order is drawn over all of them.
    Files are copied byte for byte unless they are resized, and each is decoded before. The same
    source gives the same bytes. Every shard is read back and compared. What is there appears
    complete or not at all: under a name that no source opens until the last image has been written.

    Args:
        source: any.
        target: a folder that does not exist yet, or is empty.
        size: pixels; images whose shorter side is longer are resized to it (Lanczos, antialiased)
            and stored as JPEG (colours at half the resolution, as in nearly every JPEG), those of
            an array as PNG. None: none are.
        max_side: the same for the longer side. With both, both hold.
        shard_bytes: a shard is closed before its members would take more, but never empty. Its end
            marker adds up to 10 KiB.
        quality: of the JPEGs, 1 to 100.
        on_bad_image: 'error', 'skip' or 'strict', which also leaves suspect images out; otherwise
            they are packed. Those that are resized are no longer suspect in the shards.
        workers: threads, as for `in_order`.
        progress: called after each image with the number of those done.

    Raises:
        ValueError: a choice out of range, a target that is not empty, no image that can be read.
        BadImageError: an image cannot be read, and `on_bad_image` is 'error'.
        OSError: reading or writing failed.
        RuntimeError: what was read back is not what was written, or storage does not answer.
    """
    for name, limit in (("size", size), ("max_side", max_side)):
        if limit is not None and limit < 1:
            raise ValueError(f"{name} must be at least 1 pixel, got {limit}")
    if not 1 <= quality <= 100:
        raise ValueError(f"quality must be in [1, 100], got {quality}")
    if shard_bytes < 1:
        raise ValueError(f"shard_bytes must be at least 1, got {shard_bytes}")
    bad = BadImages(on_bad_image)
    target = Path(target)
    if target.exists() and not target.is_dir():
        raise ValueError(f"{printable(str(target))} is a file: give a new folder")
    if target.is_dir() and any(target.iterdir()):
        raise ValueError(f"{printable(str(target))} is not empty: give a new folder")
    made = not target.exists()
    target.mkdir(parents=True, exist_ok=True)
    writer = Writer(target, shard_bytes)
    try:
        images = resized = suspect = 0
        prepare = Prepare(source, size, max_side, quality)
        for index, sample in enumerate(in_order(source, prepare, workers)):
            found = sample if isinstance(sample, BadImage) else sample.suspect
            if found is None or not bad.add(found):
                writer.add(_key(index, source), sample, source.label(index))
                images += 1
                resized += sample.resized
                suspect += found is not None
            if progress is not None:
                progress(index + 1)
        if not images:
            raise ValueError(f"{source.name}: no image can be read")
        total = writer.finish(source.classes)
    except BaseException:
        writer.discard()
        if made:
            target.rmdir()
        raise
    return Packed(images, resized, bad.encounters, len(writer.done), total, suspect)


def _key(index: int, source: Source) -> str:
    """The sample's number, and what of its name any reader of tar files takes."""
    name = source.identity(index).rpartition(":")[2]
    stem = re.sub(r"\.[A-Za-z]{3,4}$", "", name.rpartition("/")[2])
    return f"{index:08d}-{re.sub('[^A-Za-z0-9_-]', '_', stem)[-LONGEST_STEM:]}"


class Writer:
    """Shards under partial names, until `finish` gives them their own."""

    def __init__(self, folder: Path, shard_bytes: int) -> None:
        self._folder, self._limit = folder, shard_bytes
        self.done: list[tuple[Path, Rows]] = []
        self._file: BinaryIO | None = None
        self._tar: tarfile.TarFile | None = None
        self._rows: list[tuple[bytes, int, int, int, int, int]] = []
        self._checksums: list[int] = []

    def add(self, key: str, sample: Sample, label: int) -> None:
        """Writes one sample: its image, then its label."""
        files = {f"{key}.{sample.extension}": sample.content}
        if label >= 0:
            files[f"{key}.cls"] = b"%d" % label
        # A header of one block each, contents padded to whole blocks.
        needed = sum(BLOCK + -(-len(content) // BLOCK) * BLOCK for content in files.values())
        if self._tar is not None and self._file.tell() + needed > self._limit:
            self._close()
        if self._tar is None:
            self._begin()
        for name, content in files.items():
            info = tarfile.TarInfo(name)  # of no user and no time: the same bytes every time
            info.size = len(content)
            self._tar.addfile(info, io.BytesIO(content))
        name = f"{key}.{sample.extension}".encode()
        # The offset is found when the shard is read back.
        self._rows.append((name, 0, len(sample.content), label, sample.height, sample.width))
        self._checksums.append(zlib.crc32(sample.content))

    def _begin(self) -> None:
        path = self._folder / f"shard-{len(self.done):06d}.tar{PARTIAL}"
        # Closed by _close or discard.
        self._file = open(path, "xb")  # noqa: SIM115
        self._tar = tarfile.TarFile(fileobj=self._file, mode="w", format=tarfile.USTAR_FORMAT)

    def _close(self) -> None:
        """Ends a shard and reads it back."""
        path = Path(self._file.name)
        self._tar.close()
        self._file.flush()
        os.fsync(self._file.fileno())
        self._file.close()
        self._tar = self._file = None
        rows = scan(path)
        expected = rows_of(self._rows)
        with open(path, "rb") as file:
            checksums = [
                zlib.crc32(read_at(file.fileno(), int(size), int(offset)))
                for offset, size in zip(rows.offset, rows.size, strict=True)
            ]
        same = (
            rows.names.block == expected.names.block
            and all(
                (getattr(rows, column) == getattr(expected, column)).all()
                for column in ("size", "label", "height", "width")
            )
            and checksums == self._checksums
        )
        if not same:
            raise RuntimeError(f"{printable(str(path))}: reads back as something else")
        self.done.append((path, rows))
        self._rows, self._checksums = [], []

    def finish(self, classes: list[str] | None) -> int:
        """Gives the shards their names and writes what belongs to them; the bytes of all."""
        self._close()
        if classes is not None:
            write_whole(self._folder / CLASSES, json.dumps(classes))
        total = 0
        for partial, rows in self.done:
            shard = partial.with_name(partial.name.removesuffix(PARTIAL))
            partial.rename(shard)
            write(shard, rows)
            total += shard.stat().st_size
        return total

    def discard(self) -> None:
        """Removes all that was written."""
        if self._file is not None:
            self._file.close()
        for pattern in (f"*{PARTIAL}", "shard-*.tar", "shard-*.tar.index", CLASSES):
            for path in self._folder.glob(pattern):
                path.unlink()
