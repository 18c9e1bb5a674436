"""The folder of a run's results."""

from __future__ import annotations

import contextlib
import itertools
import os
import re
from pathlib import Path

from ..checkpoints.training import kept_checkpoints
from ..data import ImageDataset
from ..data.sources import Source
from ..files import check_output, check_writable, is_inside
from .config import PretrainConfig
from .images import is_path
from .settings import HEADER

CHECKPOINT, CONFIG = "checkpoint.pt", "config.yaml"
RUN_FILES = re.compile(r"checkpoint(-\d+)?\.pt|config\.yaml|log\.jsonl|trackers\.json|\.run\.lock")


def check_out(out: Path | None, config: PretrainConfig, data: ImageDataset | Source) -> None:
    """Refuse a folder inside that of the images: its figures would become training images."""
    named = Path(config.dataset) if is_path(config.dataset) else None
    for images in (named, getattr(data, "root", None)):
        if None not in (out, images) and os.path.isdir(images) and is_inside(out, images):
            raise ValueError(
                f"--out {out} lies in the folder of the images, {images}, and its figures would be "
                "taken for some of them: choose another folder"
            )


def try_out(out: Path | None) -> None:
    """Check that results can be written to a folder; leaves no trace."""
    made = []
    folder = out = Path("runs") if out is None else out
    while not os.path.lexists(folder):
        made.append(folder)
        folder = folder.parent
    try:
        output_folder(out, "", None)
        check_writable(out)
    finally:
        for each in made:
            with contextlib.suppress(OSError):
                each.rmdir()


def output_folder(out: Path | None, dataset: str, resume: Path | None) -> Path:
    """Create the folder of the results."""
    if out is None and resume is None:
        return _fresh_folder(Path("runs"), dataset)
    out = resume.parent if out is None else out
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ValueError(f"cannot write to --out {out}: {error.strerror}") from error
    return out


def check_unused(out: Path, resume: Path | None) -> None:
    """Refuse a folder whose checkpoints or hand-written settings would be lost.

    Called when no other run can write there.
    """
    continued = resume is not None and out.resolve() == resume.parent.resolve()
    there = kept_checkpoints(out / CHECKPOINT)
    if there and not continued:
        raise ValueError(
            f"{out} holds the checkpoint of another run: continue it with "
            f"--resume {there[0]}, or choose another --out"
        )
    if os.path.lexists(out / CONFIG):
        check_output(out / CONFIG, HEADER.encode(), option="--out:")


def name_of(config: PretrainConfig) -> str:
    """The name of the data, for titles and folders."""
    if not is_path(config.dataset):
        return config.dataset
    path = Path(config.dataset)
    return path.name if path.is_dir() and path.name else "files"


def _fresh_folder(parent: Path, name: str) -> Path:
    """Create a new folder: two runs that start at once get one each."""
    for number in itertools.count(1):
        folder = parent / (f"{name}-{number}" if number > 1 else name)
        try:
            folder.mkdir(parents=True)
        except FileExistsError:
            continue
        except OSError as error:
            raise ValueError(f"cannot write to {folder}: {error.strerror}") from error
        return folder
    raise AssertionError("unreachable")
