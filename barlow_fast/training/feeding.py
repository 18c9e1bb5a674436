"""What feeds a run: which views of its images, and how they are read."""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch

from ..data import PRESETS, ImageDataset, ViewLoader, Views
from ..data.faults import BadImages, OnBadImage
from ..data.loader import LoaderName, check_loading
from ..data.multicrop import of_count, with_small
from ..data.parallel import TIMEOUT
from ..data.presets import YAML_SUFFIXES
from ..data.sources import Source
from ..losses.catalogue import LOSSES
from .config import PretrainConfig
from .ranks import Ranks

# 96 x 96 pixels are photographs, only smaller.
_STL10 = Views(
    "stl10",
    tuple(replace(view, size=96) for view in PRESETS["imagenet"].views),
    PRESETS["imagenet"].mean,
    PRESETS["imagenet"].std,
)

# Of data sets that have none of their own name.
VIEWS_OF = {"cifar10": PRESETS["cifar"], "cifar100": PRESETS["cifar"], "stl10": _STL10}

# (training images, channels, pixels a side) of data sets that may not be at hand, for plans: as
# their publishers state them; files stand for ImageNet.
NOMINAL = {
    "fashion-mnist": (60_000, 1, 28),
    "cifar10": (50_000, 3, 32),
    "cifar100": (50_000, 3, 32),
    "stl10": (5_000, 3, 96),
    "files": (1_281_167, 3, 224),
}


@dataclass(frozen=True)
class Feeding:
    """How images are read. The resulting weights do not depend on it, except for images that
    cannot be read, and for roundings between loaders.

    See `ViewLoader` for the values.

    Raises:
        ValueError: a value that `ViewLoader` does not take.
    """

    loader: LoaderName = "auto"
    workers: int | None = None
    on_bad_image: OnBadImage = "error"
    timeout: float = TIMEOUT

    def __post_init__(self) -> None:
        check_loading(**self.arguments())

    def arguments(self) -> dict[str, Any]:
        """For `ViewLoader`."""
        return asdict(self)

    def open(
        self,
        source: Source,
        views: Views,
        config: PretrainConfig,
        ranks: Ranks,
        bad: BadImages | None = None,
    ) -> ViewLoader:
        """The loader of a run, on one rank; its threads start with the first batch. `bad`: the
        record of bad images that the run has.

        Raises:
            ValueError, ImportError: see `ViewLoader`.
        """
        return ViewLoader(
            source,
            views,
            config.batch_size // ranks.size,
            seed=config.seed,
            rank=ranks.rank,
            ranks=ranks.size,
            device=ranks.device,
            **self.arguments() | ({} if bad is None else {"on_bad_image": bad}),
        )


def check_batch(batch_size: int, images: int, name: str, ranks: int) -> None:
    """Whether a data set fills a batch over all ranks.

    Raises:
        ValueError: it has fewer images, or the ranks cannot share it.
    """
    if batch_size > images:
        raise ValueError(
            f"batch_size {batch_size} is larger than the data set: {name} has {images} training "
            "images"
        )
    if batch_size % ranks:
        raise ValueError(
            f"batch_size {batch_size} is that of all ranks, and {ranks} ranks cannot share it "
            f"equally: take {batch_size - batch_size % ranks or ranks} or "
            f"{batch_size + ranks - batch_size % ranks}"
        )


def nominal_dataset(name: str) -> ImageDataset | None:
    """Blank images in the place of a data set of `NOMINAL`; one for all of them is in memory."""
    if name not in NOMINAL:
        return None
    count, channels, side = NOMINAL[name]
    blank = torch.zeros(1, channels, side, side, dtype=torch.uint8, device="cpu")
    return ImageDataset(
        name, "as published", blank.expand(count, -1, -1, -1), None, blank, None, classes=1
    )


def views_of_run(config: PretrainConfig, data: ImageDataset | Source) -> Views:
    """All views of a run, the small ones last.

    Raises:
        ValueError: as `choose_views`; fewer than two views or more than the loss takes; small ones
            that do not fit (see `with_small`).
        OSError: the file cannot be read.
    """
    views = choose_views(config.views, data, config.reduced_decoding)
    count = len(views.views) if config.view_count is None else config.view_count
    most = LOSSES[config.loss].most_views
    if count < 2 or (most is not None and count > most):
        wanted = "compares two views" if count < 2 else f"{config.loss} takes {most} views"
        raise ValueError(
            f"the loss {wanted}, {views.name!r} has {count}: --views 2, or another number, is how "
            "many are drawn of each image"
        )
    views = of_count(views, count)
    if not config.small_views:
        return views
    shape = data.image_size if isinstance(data, ImageDataset) else None
    return with_small(views, config.small_views, config.small_size, shape)


def choose_views(name: str, data: ImageDataset | Source, reduced_decoding: bool = False) -> Views:
    """The views that a name stands for.

    Args:
        name: a preset, a YAML file, or empty for those of the data set.
        data: what they are drawn from.
        reduced_decoding: as of `Views`, and true where those of a YAML file have it.

    Raises:
        ValueError: no such views, or another number of channels than a data set in memory has.
        OSError: the file cannot be read.
    """
    if not name and data.name not in PRESETS | VIEWS_OF:
        raise ValueError(
            f"no views are specified for {data.name!r}: choose --views, "
            f"one of {', '.join(PRESETS)} or a .yaml file"
        )
    if name and name not in PRESETS and not name.endswith(YAML_SUFFIXES):
        raise ValueError(
            f"--views must be one of {', '.join(PRESETS)}, a .yaml file or a number of views, got "
            f"{name!r}"
        )
    views = named_views(name or data.name)
    if isinstance(data, ImageDataset) and data.channels != len(views.mean):
        raise ValueError(
            f"views {views.name!r} have {len(views.mean)} channels, {data.name} has {data.channels}"
        )
    return replace(views, reduced_decoding=True) if reduced_decoding else views


def named_views(name: str) -> Views:
    """The views of a preset, of a data set, or in a YAML file.

    Raises:
        KeyError: none of these.
        ValueError, OSError: see `Views.from_yaml`.
    """
    if name.endswith(YAML_SUFFIXES):
        return Views.from_yaml(Path(name))
    return (PRESETS | VIEWS_OF)[name]


def view_sizes(views: Views, data: ImageDataset | Source) -> tuple[int, ...]:
    """Pixels a side of each view; of data in memory that are not resized, the images'."""
    return tuple(max(view.shape or data.image_size) for view in views.views)


def image_size(views: Views, data: ImageDataset | Source) -> int:
    """Pixels a side of the first view, which is as large as the images of evaluations."""
    return view_sizes(views, data)[0]


def views_in_words(views: Views) -> str:
    """Such as '2 views', or '2 views and 6 of 96 pixels'."""
    # Without a size they are as large as the images, which small ones are not.
    shapes = [view.shape for view in views.views]
    kinds = {shape: shapes.count(shape) for shape in shapes}
    first, *others = kinds.items()
    return " and ".join(
        [f"{first[1]} views", *(f"{count} of {max(shape)} pixels" for shape, count in others)]
    )
