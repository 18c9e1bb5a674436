"""Where images come from: arrays, folders and shards behind one protocol."""

from __future__ import annotations

import glob
import os
from collections.abc import Callable
from pathlib import Path

from ...terminal import printable
from ..decoding import MAX_PIXELS
from .arrays import ArraySource
from .base import Source
from .folder import FolderSource
from .parts import Parts, find_parts
from .shards import PARTIAL, ShardSource
from .tar import COMPRESSED_ENDINGS

__all__ = [
    "ArraySource",
    "FolderSource",
    "Parts",
    "ShardSource",
    "Source",
    "find_parts",
    "open_source",
    "passed_over",
]


def open_source(
    spec: str | Path,
    split: str | None = None,
    *,
    data_dir: Path | None = None,
    allow_symlinks: bool = False,
    max_pixels: int = MAX_PIXELS,
    progress: Callable[[int], None] | None = None,
) -> Source:
    """Open the source that a name or a path stands for.

    Args:
        spec: the name of a data set of `DATASETS` (a folder of that name is `./name`), a folder of
            images, a folder of tar files, one tar file, or a glob pattern of tar files. Of a folder
            that is divided into parts the training part (`find_parts`); `FolderSource` takes all.
        split: of a named data set 'train' (the default), 'test' or 'unlabelled'; of a folder its
            sub-folder of that name.
        data_dir: where the files of a named data set lie, as `load` takes it.
        allow_symlinks, max_pixels, progress: as `FolderSource` and `ShardSource` take them.

    Raises:
        ValueError: nothing of that kind is there, it is damaged, or it is not clear which part of a
            folder is meant.
        OSError: it cannot be read.
    """
    from ..datasets import DATASETS, load

    text = str(spec)
    if isinstance(spec, str) and text in DATASETS:
        return ArraySource.of_dataset(load(text, data_dir), split or "train")
    if data_dir is not None:
        raise ValueError(f"a data directory belongs to a named data set, not to {printable(text)}")
    path = Path(spec)
    if split is not None:
        path = path / split
    tar_files = (
        text.lower().endswith((".tar", *COMPRESSED_ENDINGS))
        or "://" in text
        or text.startswith("pipe:")
    )
    if not path.is_dir() and (tar_files or (not path.exists() and glob.has_magic(text))):
        if split is not None:
            raise ValueError(f"{printable(text)} has no splits: name the tar files of one")
        return ShardSource(text, max_pixels=max_pixels, progress=progress)
    if not path.exists() and os.sep not in text and split is None:
        raise ValueError(
            f"{printable(text)} is neither a path nor a data set; there are {', '.join(DATASETS)}"
        )
    parts = find_parts(path) if path.is_dir() else Parts(path)
    endings = (".tar", f".tar{PARTIAL}")
    path = parts.train
    source: FolderSource | ShardSource
    if path.is_dir() and any(name.endswith(endings) for name in os.listdir(path)):
        source = ShardSource(path, max_pixels=max_pixels, progress=progress)
    else:
        source = FolderSource(
            path, allow_symlinks=allow_symlinks, max_pixels=max_pixels, progress=progress
        )
    source.beside = tuple(part for part in (parts.held_out, *parts.others) if part is not None)
    return source


def passed_over(source: Source, used: Source | None = None) -> str:
    """What a source does not read of what lies in or beside it; '' where it reads all.

    Args:
        source: any.
        used: a part beside it that is read too.
    """
    texts = [printable(str(part)) for part in getattr(source, "beside", ())]
    texts = [text for text in texts if used is None or text != used.name]
    count = getattr(source, "ignored", 0)
    if count:
        files = f"{count:,} file" + ("" if count == 1 else "s")
        origin = getattr(source, "source", source)
        in_folder = isinstance(origin, FolderSource)
        kind = "of other extensions" if in_folder else "that are no images or labels"
        texts.append(f"{files} {kind}{': ' + origin.others if in_folder else ''}")
    return f"not looked at: {', '.join(texts)}" if texts else ""
