"""What is compared: ways to turn the same images into the same number of views.

A feed is opened in a process of its own (`turns`) and yields, batch after batch, how many images
it made; a kernel is called in the process of the suite.
"""

from __future__ import annotations

import contextlib
import functools
import importlib.util
import itertools
from collections.abc import Callable, Collection, Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from barlow_fast import kernels
from barlow_fast.data import PRESETS, Batch, ViewLoader, Views, batches, draw
from barlow_fast.data.order import Shard
from barlow_fast.data.rendering import dali
from barlow_fast.data.rendering.pil import PilRenderer
from barlow_fast.data.rendering.workers import WorkerRenderer
from barlow_fast.data.sources import ArraySource, FolderSource, Source
from bench import cli, devices, provenance
from bench.devices import Device
from bench.views import images

WORKERS = 2
PREFETCH = 2
OFFICIAL = "official"


class DisagreementError(Exception):
    """A feed does not make what the others make."""


@dataclass(frozen=True)
class Case:
    """Images of one kind.

    Attributes:
        name: what `--cases` and the rows call it.
        title: what the tables call it.
        preset: of the views.
        side: of the views, in pixels.
        batch_size: images per batch.
        feeds: names, ours first; or kernels.
        share: of the time that a feed gets; the faster the images, the less is needed.
        target: how many times as fast as the recipe the best of ours should be.
        seconds: that the case takes at most; 0 where it is begun while any time is left.
    """

    name: str
    title: str
    preset: str
    side: int
    batch_size: int
    feeds: tuple[str, ...]
    share: float = 1.0
    target: float | None = None
    seconds: float = 0.0

    def __str__(self) -> str:
        return self.name

    @property
    def views(self) -> Views:
        return PRESETS[self.preset]

    @property
    def files(self) -> bool:
        """Whether the images are files."""
        return self.preset == "imagenet"

    def only(self, names: Collection[str]) -> Case:
        """The same with these feeds alone."""
        return replace(self, feeds=tuple(feed for feed in self.feeds if feed in names))

    @property
    def unit(self) -> str:
        """What is counted."""
        return "views" if self.feeds[0] in KERNELS else "images"


def source_of(case: Case, folder: Path | None) -> Source:
    """The images."""
    if case.files:
        return FolderSource(folder)
    return ArraySource(images.pixels(case.side, len(case.views.mean)))


def ours(loader: str, case: Case, folder: Path | None, device: Device) -> Iterator[int]:
    """This package's loader, held against torchvision in its first batch."""
    workers = device.loader_workers if loader != "arrays" else None
    with ViewLoader(
        source_of(case, folder), case.views, case.batch_size, loader=loader, workers=workers,
        device=device.torch,
    ) as feed:  # fmt: skip
        for number, batch in enumerate(endless(feed)):
            if not number and (found := disagreement(feed, batch)) is not None:
                raise DisagreementError(found)
            _check(batch.views, case)
            yield len(batch.index)


def disagreement(loader: ViewLoader, batch: Batch) -> str | None:
    """How a batch differs from what torchvision makes of the same parameters; None where it does
    not, or where torchvision is missing."""
    if importlib.util.find_spec("torchvision") is None:
        return None
    from bench.views import agreement

    here = batch._replace(views=tuple(view.cpu() for view in batch.views), index=batch.index.cpu())
    return agreement.problem(loader, here)


def elsewhere(name: str, case: Case, folder: Path | None, device: Device) -> Iterator[int]:
    """The official recipe or lightly's, in a DataLoader."""
    from bench.views import recipes

    views = case.views
    transform = {
        OFFICIAL: lambda: recipes.official(views, case.side),
        "lightly": lambda: recipes.lightly(case.side, views),
    }[name]()
    if case.files:
        dataset = recipes.files(folder, transform)
    else:
        dataset = recipes.pixels(images.pixels(case.side, len(views.mean)), transform)
    for batch in endless(recipes.loader(dataset, case.batch_size, WORKERS)):
        _check(batch, case)
        yield len(batch[0])


def crops(renderer: str, case: Case, folder: Path | None, device: Device) -> Iterator[int]:
    """Decoded, cropped and resized to bytes; nothing after it."""
    source, size = source_of(case, folder), case.batch_size
    if renderer == "dali":
        feed: Any = dali.DaliRenderer(
            source, case.views, size, threads=WORKERS, device="cpu", prefetch=PREFETCH
        )
    else:
        feed = WorkerRenderer(source, case.views, size, workers=WORKERS, prefetch=PREFETCH)
    with contextlib.closing(feed):
        for under_way, samples in enumerate(_samples(len(source), size)):
            feed.submit(0, samples)
            if under_way >= PREFETCH - 1:
                yield len(feed.receive().samples)


@dataclass(frozen=True)
class Feed:
    """One that is compared.

    Attributes:
        title: what the tables call it.
        make: (case, folder of its files or None, device) -> images per batch, without an end.
        packages: that do the work besides torch, as they are distributed.
        modules: that it needs.
    """

    title: str
    make: Callable[[Case, Path | None, Device], Iterator[int]]
    packages: tuple[str, ...] = ()
    modules: tuple[str, ...] = ()

    def unavailable(self, case: Case, device: Device) -> str | None:
        """Why it cannot run."""
        if DALI is self.packages and (reason := dali.why_unusable()):
            return reason
        for module in (*self.modules, *(["PIL"] if case.files else [])):
            if importlib.util.find_spec(module) is None:
                return f"{module} is not installed (pip install 'barlow-fast[bench]')"
        return None


@dataclass(frozen=True)
class Kernel:
    """The photometric kernel of a set: see `Feed`.

    Attributes:
        backend: kernel set.
        sharp: whether nothing is blurred.
        dtype: of its output.
    """

    title: str
    backend: str
    sharp: bool = False
    dtype: torch.dtype = torch.float32
    packages: tuple[str, ...] = ()

    def unavailable(self, case: Case, device: Device) -> str | None:
        """Why it cannot run."""
        return kernels.why_unusable(self.backend, device.torch)


DALI = ("nvidia-dali-cuda130", "nvidia-dali-cuda120")
PIL = ("pillow",)
VISION = ("torchvision", "pillow")
FEEDS = {
    "ours-dali": Feed("barlow_fast, DALI on the CPU", functools.partial(ours, "dali"), DALI),
    "ours-pil": Feed("barlow_fast, PIL", functools.partial(ours, "pil"), PIL),
    "ours-arrays": Feed("barlow_fast", functools.partial(ours, "arrays")),
    OFFICIAL: Feed(
        "official recipe", functools.partial(elsewhere, OFFICIAL), VISION, ("torchvision",)
    ),
    "lightly": Feed(
        "lightly", functools.partial(elsewhere, "lightly"), ("lightly", *VISION),
        ("torchvision", "lightly"),
    ),
    "crops-dali": Feed(
        "DALI: decoded and cropped only", functools.partial(crops, "dali"), DALI
    ),
    "crops-pil": Feed("PIL: decoded and cropped only", functools.partial(crops, "pil"), PIL),
}  # fmt: skip
KERNELS = {
    "kernel-cpu": Kernel("barlow_fast", "cpu"),
    "kernel-aten": Kernel("barlow_fast (aten)", "aten"),
    "kernel-triton-sharp-bfloat16": Kernel(
        "Triton, without blur, to bfloat16", "triton", True, torch.bfloat16
    ),
    "kernel-triton-sharp-float32": Kernel("Triton, without blur, to float32", "triton", True),
    "kernel-triton-bfloat16": Kernel(
        "Triton, with blur, to bfloat16", "triton", dtype=torch.bfloat16
    ),
    "kernel-triton-float32": Kernel("Triton, with blur, to float32", "triton"),
    "kernel-aten-float32": Kernel("plain torch, with blur, to float32", "aten"),
}
COMPARED: dict[str, Feed | Kernel] = FEEDS | KERNELS
TITLES = {name: each.title for name, each in COMPARED.items()}

CASES = {
    case.name: case
    for case in (
        Case(
            "photographs", "two views of 224 × 224 from JPEG files of about 500 × 400", "imagenet",
            224, 64, ("ours-dali", "ours-pil", OFFICIAL, "lightly", "crops-dali", "crops-pil"),
            target=1.7,
        ),
        Case(
            "arrays-32", "two views of 32 × 32 × 3 from images in memory", "cifar",
            32, 256, ("ours-arrays", OFFICIAL, "lightly"), share=0.4, target=5.0,
        ),
        Case(
            "arrays-28", "two views of 28 × 28 × 1 from images in memory", "fashion-mnist",
            28, 256, ("ours-arrays", OFFICIAL), share=0.4, target=5.0,
        ),
        Case(
            "kernel", "the photometric kernel alone, 224 × 224 × 3", "imagenet",
            224, 64, ("kernel-cpu", "kernel-aten"), share=0.3,
        ),
    )
}  # fmt: skip
# On a GPU: the kernels, and our loaders alone.
CUDA_CASES = {
    "kernel": replace(CASES["kernel"], batch_size=256, feeds=tuple(KERNELS)[2:], seconds=20.0),
    "arrays-32": replace(CASES["arrays-32"], feeds=("ours-arrays",), share=1.0, seconds=20.0),
    "photographs": replace(CASES["photographs"], feeds=("ours-dali", "ours-pil"), seconds=55.0),
}
BY_KIND = {"cpu": CASES, "cuda": CUDA_CASES}
QUICK = {
    "photographs": ("ours-dali", "ours-pil", OFFICIAL, "lightly"),
    "arrays-32": ("ours-arrays", OFFICIAL),
    "kernel": ("kernel-cpu",),
}


def parse(cases: str | None, feeds: str | None, quick: bool, kind: str = "cpu") -> list[Case]:
    """Cases of a comma-separated list, with those of their feeds that another one names, on a kind
    of device; ValueError for an unknown name."""
    known = BY_KIND[kind]
    few = QUICK if quick else {}
    names = cli.listed(cases, known, "case", [name for name in known if name in few])
    chosen = [
        replace(
            case, feeds=tuple(f for f in case.feeds if f in few.get(case.name, ())) or case.feeds
        )
        for case in map(known.__getitem__, names)
    ]
    if feeds is not None:
        some = cli.listed(feeds, {feed: 0 for case in chosen for feed in case.feeds}, "feed")
        chosen = [replace(case, feeds=tuple(f for f in case.feeds if f in some)) for case in chosen]
    return [case for case in chosen if case.feeds]


def version(feed: str) -> str:
    """The packages that do the work besides torch, with their versions."""
    return provenance.versions(COMPARED[feed].packages)


class Counts:
    """Images per batch, and how to wait until the device has all of them."""

    def __init__(self, counts: Iterator[int], device: Device) -> None:
        self._counts = counts
        self.settle = device.synchronize

    def __iter__(self) -> Iterator[int]:
        return self

    def __next__(self) -> int:
        return next(self._counts)


@contextlib.contextmanager
def open_feed(
    feed: str, case: Case, folder: Path | None, kind: str = "cpu"
) -> Iterator[Iterator[int]]:
    """Images per batch, without an end. What runs in the background ends with the context.

    Args:
        feed: a name of FEEDS.
        case: what to load.
        folder: of the files, for a case of files.
        kind: of the device: 'cpu' or 'cuda'.

    Raises:
        DisagreementError: entering the context, or with the first batch.
    """
    device = devices.choose(kind)
    with contextlib.closing(FEEDS[feed].make(case, folder, device)) as counts:
        yield Counts(counts, device)


def kernel_arguments(case: Case, folder: Path | None, device: torch.device) -> list[tuple]:
    """(crops, rows, mean, std) of each view of one batch; without a folder, of random pixels."""
    views = case.views
    if folder is None:
        samples = np.arange(case.batch_size)
        pixels = images.pixels(case.side, len(views.mean), case.batch_size)
        crops = [torch.from_numpy(pixels)] * len(views.views)
    else:
        source = source_of(case, folder)
        samples = next(_samples(len(source), case.batch_size))
        crops = PilRenderer(source, views).render(0, samples).crops
    statistics = [torch.tensor(values, device=device) for values in (views.mean, views.std)]
    found = []
    for number, pixels in enumerate(crops):
        parameters = draw(views.views[number], 0, 0, samples, number)
        rows = torch.from_numpy(parameters.photometric_rows(*pixels.shape[1:3]))
        found.append((pixels.to(device), rows.to(device), *statistics))
    return found


def kernel_bytes(case: Case, element_bytes: int = 4) -> int:
    """What a view must move: bytes read once, values written once."""
    return case.side**2 * len(case.views.mean) * (1 + element_bytes)


def _samples(count: int, size: int) -> Iterator[np.ndarray]:
    """Those of batches, epoch after epoch."""
    while True:
        yield from batches(0, 0, count, size, Shard(0, 1))


def endless(epoch: Iterable[Any]) -> Iterator[Any]:
    """Epoch after epoch."""
    return itertools.chain.from_iterable(itertools.repeat(epoch))


def _check(views: Iterable[torch.Tensor], case: Case) -> None:
    """All feeds yield the same kind of tensors."""
    want = (case.batch_size, len(case.views.mean), case.side, case.side)
    found = [(tuple(view.shape), view.dtype) for view in views]
    if found != [(want, torch.float32)] * len(case.views.views):
        raise DisagreementError(f"views are {found}, should be {want} in float32")
