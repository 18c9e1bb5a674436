"""`barlow-fast data`: images looked over, packed and shown. Imports of heavy libraries wait until a
command runs."""

from __future__ import annotations

import contextlib
import re
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from .. import terminal
from ..files import WriteError, check_output
from .exits import FAILURE, failures
from .options import DataDir, JsonFile, OnBadImage, Symlinks, Workers
from .progress import progress_bar

if TYPE_CHECKING:
    from rich.console import Console

    from ..data.faults import BadImage
    from ..data.sources import Source

# Rows of the table of bad images; a file has room for all.
ROWS = 100

UNITS = {"": 1, "K": 2**10, "M": 2**20, "G": 2**30}

data = typer.Typer(no_args_is_help=True, help="Look over, pack and show images.")

SourceArgument = Annotated[
    str,
    typer.Argument(
        help="Folder of images, folder or pattern of tar files, or name of a data set.",
        show_default=False,
    ),
]
Split = Annotated[
    str | None,
    typer.Option(
        help="Part: of a data set train, test or unlabelled; of a folder one of its folders.",
        show_default="train of a data set, all of a folder",
    ),
]


@data.command()
def check(
    source: SourceArgument,
    split: Split = None,
    data_dir: DataDir = None,
    allow_symlinks: Symlinks = False,
    workers: Workers = None,
    json_file: JsonFile = None,
) -> None:
    """Decode every image and list those that cannot be read, and suspect ones, which are decoded
    with a warning; exit status 1 if there are any of the former."""
    console = terminal.console()
    with failures():
        from ..data import jpeg
        from ..data.check import REPORT_START, bad_images, write_report

        if json_file is not None:
            check_output(json_file, REPORT_START, option="--json")
        images = _open(console, source, split, data_dir, allow_symlinks)
        kept: list[BadImage] = []
        bad = suspect = 0
        unwritten: OSError | None = None
        with _bar(console, "checking", len(images)) as done:
            found = bad_images(images, workers, done)
            if json_file is not None:
                found = write_report(json_file, images, found)
            try:
                for image in found:
                    suspect += image.suspect
                    bad += not image.suspect
                    if len(kept) < ROWS:
                        kept.append(image)
            except WriteError as error:
                unwritten = error
        if kept:
            _table(console, kept)
            more = bad + suspect - len(kept)
            if more:
                console.print(f"and {more:,} more (--json FILE lists them all)")
        console.print(f"{bad:,} of {_number(len(images), 'image')} cannot be read")
        if suspect:
            console.print(f"{suspect:,} more suspect: decoded with a warning")
        if jpeg.simplejpeg() is None:
            console.print("without simplejpeg (pip install simplejpeg) none is seen to be suspect")
        if unwritten is not None:
            raise unwritten
    if bad:
        sys.exit(FAILURE)


@data.command()
def pack(
    source: SourceArgument,
    target: Annotated[
        Path, typer.Argument(help="Folder to write, new or empty.", show_default=False)
    ],
    size: Annotated[
        int | None,
        typer.Option(
            help="Resize images whose shorter side has more pixels than this.",
            show_default="none are",
        ),
    ] = None,
    max_side: Annotated[
        int | None,
        typer.Option(
            help="Resize images whose longer side has more pixels than this.",
            show_default="none are",
        ),
    ] = None,
    quality: Annotated[
        int, typer.Option(help="Quality of the JPEGs of resized images, 1 to 100.")
    ] = 95,
    shard_bytes: Annotated[
        str, typer.Option(help="Size of the largest shard, such as 64M or 1G.")
    ] = "256M",
    on_bad_image: OnBadImage = "error",
    split: Split = None,
    data_dir: DataDir = None,
    allow_symlinks: Symlinks = False,
    workers: Workers = None,
) -> None:
    """Pack images into tar shards that train as they are."""
    console = terminal.console()
    with failures():
        from ..data.pack import pack

        limit = _bytes(shard_bytes)
        images = _open(console, source, split, data_dir, allow_symlinks)
        with _bar(console, "packing", len(images)) as done:
            packed = pack(
                images,
                target,
                size=size,
                max_side=max_side,
                quality=quality,
                shard_bytes=limit,
                on_bad_image=on_bad_image,
                workers=workers,
                progress=done,
            )
        suspects = f", {packed.suspect:,} suspect" if packed.suspect else ""
        console.print(
            f"{_number(packed.images, 'image')} ({packed.resized:,} resized, "
            f"{packed.left_out:,} left out{suspects}) in {_number(packed.shards, 'shard')}, "
            f"{packed.bytes:,} bytes, read back and compared: {target}",
        )


@data.command()
def show(
    source: SourceArgument,
    preset: Annotated[
        str, typer.Option(help="Views: imagenet, cifar, fashion-mnist, digits or a YAML file.")
    ],
    views: Annotated[
        int | None,
        typer.Option(help="Their number, as in training.", show_default="as the preset has"),
    ] = None,
    small_views: Annotated[
        int, typer.Option(help="Small views of each image beside the others (multi-crop).")
    ] = 0,
    small_size: Annotated[
        int | None,
        typer.Option(help="Pixels a side of small views.", show_default="96/224 of the others'"),
    ] = None,
    output: Annotated[Path, typer.Option(help="PNG file to write.")] = Path("sheet.png"),
    count: Annotated[int, typer.Option(help="Number of images, 1 to 64.")] = 8,
    seed: Annotated[int, typer.Option(help="Seed of order and views, as in training.")] = 0,
    epoch: Annotated[int, typer.Option(help="Epoch of order and views, as in training.")] = 0,
    split: Split = None,
    data_dir: DataDir = None,
    allow_symlinks: Symlinks = False,
) -> None:
    """Draw a sheet of images and their views."""
    console = terminal.console()
    with failures():
        from ..data import PRESETS, Views
        from ..data.multicrop import of_count, with_small
        from ..data.show import check_sheet, sheet, write_sheet

        if preset not in PRESETS and not preset.endswith((".yaml", ".yml")):
            raise ValueError(
                f"--preset must be one of {', '.join(PRESETS)} or a .yaml file, got {preset!r}"
            )
        shown = PRESETS[preset] if preset in PRESETS else Views.from_yaml(Path(preset))
        if views is not None:
            shown = of_count(shown, views)
        if small_views or small_size is not None:
            shown = with_small(shown, small_views, small_size)
        check_sheet(output, option="--output")
        images = _open(console, source, split, data_dir, allow_symlinks)
        check_sheet(output, images, "--output")
        picture, bad = sheet(images, shown, count, seed=seed, epoch=epoch)
        write_sheet(output, picture)
        if bad:
            _table(console, bad)
        console.print(f"{output}")


def _open(
    console: Console, spec: str, split: str | None, data_dir: Path | None, allow_symlinks: bool
) -> Source:
    """Open the source and print its number of images and classes."""
    from ..data.sources import open_source, passed_over

    with _bar(console, "looking", None) as found:
        images = open_source(
            spec, split, data_dir=data_dir, allow_symlinks=allow_symlinks, progress=found
        )
    classes = f" in {_number(len(images.classes), 'class')}" if images.classes else ""
    console.print(f"{images.name}: {_number(len(images), 'image')}{classes}")
    if passed_over(images):
        console.print(passed_over(images))
    return images


@contextlib.contextmanager
def _bar(console: Console, description: str, total: int | None) -> Iterator[Callable[[int], None]]:
    with progress_bar(console) as update:
        yield lambda done: update(description, done, total)


def _table(console: Console, bad: list[BadImage]) -> None:
    """Identity and reason in two columns. Names of files are text, never markup."""
    width = min(max(len(image.identity) for image in bad), 80)
    for image in bad:
        kind = "suspect: " if image.suspect else ""
        console.print(f"{image.identity:<{width}}  {kind}{image.reason}")


def _number(count: int, thing: str) -> str:
    return f"{count:,} {thing}" + ("" if count == 1 else "es" if thing.endswith("s") else "s")


def _bytes(text: str) -> int:
    match = re.fullmatch(r"(\d{1,15})([KMG]?)(?:i?B)?", text.strip(), re.IGNORECASE)
    if match is None:
        raise ValueError(f"--shard-bytes takes a number such as 1000000, 64M or 1G, got {text!r}")
    return int(match[1]) * UNITS[match[2].upper()]
