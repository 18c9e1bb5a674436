"""`barlow-fast export`: an encoder in a file for others. Imports of heavy libraries wait until the
command runs."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from .. import terminal
from .exits import failures
from .options import EncoderName, ImageSize


def export(
    checkpoint: Annotated[
        Path,
        typer.Argument(
            help="Checkpoint of this program, the official code, solo-learn, lightly, mmselfsup, "
            "VISSL, torchvision or timm.",
            show_default=False,
        ),
    ],
    out: Annotated[Path, typer.Argument(help="File to write.", show_default=False)],
    format: Annotated[
        str | None,
        typer.Option(
            help="Format: torchvision, timm, safetensors or onnx.",
            show_default="by the file's extension; .pth and .pt: torchvision",
        ),
    ] = None,
    encoder: EncoderName = None,
    channels: Annotated[
        int | None,
        typer.Option(
            min=1,
            help="Channels of the images, if they must be so many.",
            show_default="those of the checkpoint",
        ),
    ] = None,
    image_size: ImageSize = None,
) -> None:
    """Write the encoder of a checkpoint for other programs; read it back and compare."""
    console = terminal.console()
    with failures():
        from ..checkpoints import FORMATS, load_encoder
        from ..checkpoints import export as write
        from ..checkpoints.exporting import SUFFIXES
        from ..checkpoints.reading import check_export

        format = format or SUFFIXES.get(out.suffix.lower())
        if format not in FORMATS:
            raise ValueError(
                f"--format must be one of {', '.join(FORMATS)}, got {format or 'none'} for {out}"
            )
        check_export(out, [checkpoint])
        loaded = load_encoder(checkpoint, encoder=encoder, channels=channels, image_size=image_size)
        console.print(
            f"{checkpoint}: {loaded.name} of a {loaded.format} checkpoint, "
            f"{loaded.features:,} features, {loaded.channels} x {loaded.image_size} x "
            f"{loaded.image_size} images",
        )
        assumed = loaded.metadata["assumed"]
        if assumed:
            known = ", ".join(f"{name} {getattr(loaded, name)}" for name in assumed)
            console.print(f"not in the checkpoint, assumed: {known}")
        line = write(loaded, out, format)
        console.print(f"{out}: {format}, {out.stat().st_size:,} bytes, read back and compared")
        console.print(f"load it with: {line}")
