"""The images of a run."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from ..data import ImageDataset, load
from ..data.sources import Source, open_source
from ..evaluation.splits import held_out_splits
from .config import PretrainConfig
from .estimate import check_memory, estimate_memory
from .feeding import nominal_dataset, view_sizes, views_of_run
from .ranks import Ranks


def is_path(dataset: str) -> bool:
    """Whether a setting names files rather than a data set."""
    return os.path.isabs(dataset) or "://" in dataset or dataset.startswith("pipe:")


def load_images(
    config: PretrainConfig, data_dir: Path | None, ranks: Ranks
) -> ImageDataset | Source:
    """Load the data set, or open the files, of a run."""
    if config.dataset == "files":
        raise ValueError("this preset is for a folder of images: give it as --data")
    if is_path(config.dataset):
        with ranks.together("the data"):
            return open_source(config.dataset)
    # Only one process of a machine may download; the others find the files.
    for first in (True, False):
        with ranks.together("the data"):
            if ranks.first == first:
                data = load(config.dataset, data_dir)
    return data


def held_out(config: PretrainConfig, data: ImageDataset | Source) -> tuple[Any, str]:
    """The labelled images beside those of `--data` that features are scored on, or None; and a
    description of them."""
    if not is_path(config.dataset):
        return None, ""
    try:
        splits = held_out_splits(config.dataset, data)
    except ValueError as error:
        return None, f"is skipped: {error}"
    if splits is None:
        return None, ""
    scored, candidates = (
        min(len(part), config.neighbour_images) for part in (splits.test, splits.train)
    )
    return splits, f"scores {scored:,} images of {splits.test.name} by {candidates:,} of training"


def planned_images(
    config: PretrainConfig, data_dir: Path | None, ranks: Ranks
) -> tuple[ImageDataset | Source, str]:
    """The data of a run and a description; blank images where a named data set can be neither found
    nor downloaded."""
    nominal = nominal_dataset(config.dataset) if data_dir is None else None
    if config.dataset == "files":
        return nominal, f"{len(nominal.train_images)} training images, as ImageNet has (no --data)"
    try:
        data = load_images(config, data_dir, ranks)
    except FileNotFoundError as error:
        if nominal is None:
            raise
        return nominal, f"{len(nominal.train_images)} training images, as published ({error})"
    return data, f"{data.name}, {len(getattr(data, 'train_images', data))} training images"


def check_memory_of(config: PretrainConfig, data: ImageDataset | Source, ranks: Ranks) -> None:
    """Refuse a run that does not fit, before anything large is allocated."""
    views = views_of_run(config, data)
    sizes = view_sizes(views, data)
    memory = estimate_memory(config, len(views.mean), sizes, ranks.device, ranks.size)
    check_memory(memory, config, ranks.device)


def absolute(path: str) -> str:
    """Make a path absolute, so that the run can be resumed from any folder."""
    return path if "://" in path or path.startswith("pipe:") else os.path.abspath(path)
