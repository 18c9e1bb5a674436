"""Options that several commands have."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

# The default of paths that every data set has of its own.
USUAL_PLACES = "the usual places"
# The default of options that are settings of a run.
PRESETS = "the preset's"

DataDir = Annotated[
    Path | None,
    typer.Option(
        help="Folder of the data set's files, or to download them to.", show_default=USUAL_PLACES
    ),
]
Symlinks = Annotated[
    bool, typer.Option("--allow-symlinks", help="Follow links that lead out of the folder.")
]
OnBadImage = Annotated[
    str,
    typer.Option(
        help="Images that cannot be read: error (stop), skip (leave them out) or strict (leave out "
        "also those that are decoded with a warning)."
    ),
]
ReducedDecoding = Annotated[
    bool | None,
    typer.Option(
        "--reduced-decoding",
        help="Decode large JPEGs at a half, a quarter or an eighth of their size where the views "
        "need no more: faster, other pixels.",
        show_default="false",
    ),
]
Workers = Annotated[
    int | None,
    typer.Option(
        min=0,
        help="Threads that read images; 0: none of their own.",
        show_default="one per core, at most 16",
    ),
]
Device = Annotated[str, typer.Option(help="Device: auto, cpu or cuda.")]
JsonFile = Annotated[Path | None, typer.Option("--json", help="JSON file for all results.")]
EncoderName = Annotated[
    str | None,
    typer.Option(
        help="Architecture, where the file does not state it, such as convnext_tiny.",
        show_default="that of the file",
    ),
]
ImageSize = Annotated[
    int | None,
    typer.Option(
        min=1, help="Image size in pixels.", show_default="that of the file, or the usual one"
    ),
]
