"""What is compared: ways to turn the same images into the same number of views.

A feed is opened in a process of its own (`turns`) and yields, batch after batch, how many images
(or views, for the kernel alone) it made.
"""

from __future__ import annotations

import contextlib
import importlib.util
import itertools
from collections.abc import Iterable, Iterator
from contextlib import AbstractContextManager
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
        feeds: names, ours first.
        unit: what is counted.
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
    unit: str = "images"
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


CASES = {
    case.name: case
    for case in (
        Case(
            "photographs",
            "two views of 224 × 224 from JPEG files of about 500 × 400",
            "imagenet",
            224,
            64,
            ("ours-dali", "ours-pil", OFFICIAL, "lightly", "crops-dali", "crops-pil"),
            target=1.7,
        ),
        Case(
            "arrays-32",
            "two views of 32 × 32 × 3 from images in memory",
            "cifar",
            32,
            256,
            ("ours-arrays", OFFICIAL, "lightly"),
            share=0.4,
            target=5.0,
        ),
        Case(
            "arrays-28",
            "two views of 28 × 28 × 1 from images in memory",
            "fashion-mnist",
            28,
            256,
            ("ours-arrays", OFFICIAL),
            share=0.4,
            target=5.0,
        ),
        Case(
            "kernel",
            "the photometric kernel alone, 224 × 224 × 3",
            "imagenet",
            224,
            64,
            ("kernel-cpu", "kernel-aten"),
            unit="views",
            share=0.3,
        ),
    )
}
# What a kernel is: the backend, whether nothing is blurred, and the type of its output.
KERNELS = {
    "kernel-cpu": ("cpu", False, torch.float32),
    "kernel-aten": ("aten", False, torch.float32),
    "kernel-triton-sharp-bfloat16": ("triton", True, torch.bfloat16),
    "kernel-triton-sharp-float32": ("triton", True, torch.float32),
    "kernel-triton-bfloat16": ("triton", False, torch.bfloat16),
    "kernel-triton-float32": ("triton", False, torch.float32),
    "kernel-aten-float32": ("aten", False, torch.float32),
}
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
TITLES = {
    "ours-dali": "barlow_fast, DALI on the CPU",
    "ours-pil": "barlow_fast, PIL",
    "ours-arrays": "barlow_fast",
    OFFICIAL: "official recipe",
    "lightly": "lightly",
    "crops-dali": "DALI: decoded and cropped only",
    "crops-pil": "PIL: decoded and cropped only",
    "kernel-cpu": "barlow_fast",
    "kernel-aten": "barlow_fast (aten)",
    "kernel-triton-sharp-bfloat16": "Triton, without blur, to bfloat16",
    "kernel-triton-sharp-float32": "Triton, without blur, to float32",
    "kernel-triton-bfloat16": "Triton, with blur, to bfloat16",
    "kernel-triton-float32": "Triton, with blur, to float32",
    "kernel-aten-float32": "plain torch, with blur, to float32",
}
PACKAGES = {
    "ours-dali": ("nvidia-dali-cuda130", "nvidia-dali-cuda120"),
    "crops-dali": ("nvidia-dali-cuda130", "nvidia-dali-cuda120"),
    "ours-pil": ("pillow",),
    "crops-pil": ("pillow",),
    OFFICIAL: ("torchvision", "pillow"),
    "lightly": ("lightly", "torchvision", "pillow"),
}


def parse(text: str | None, quick: bool, kind: str = "cpu") -> list[tuple[Case, tuple[str, ...]]]:
    """Cases of a comma-separated list with their feeds on a kind of device; ValueError for an
    unknown name."""
    known = BY_KIND[kind]
    few = QUICK if quick else {}
    names = cli.listed(text, known, "case", [name for name in known if name in few])
    return [
        (case, tuple(feed for feed in case.feeds if feed in few.get(case.name, ())) or case.feeds)
        for case in map(known.__getitem__, names)
    ]


def unavailable(feed: str, case: Case, device: Device) -> str | None:
    """Why a feed cannot run on a device."""
    if feed in KERNELS:
        return kernels.why_unusable(KERNELS[feed][0], device.torch)
    if feed.endswith("-dali") and (reason := dali.why_unusable()):
        return reason
    ours = feed.startswith(("ours-", "crops-"))
    needed = [] if ours else ["torchvision", *(["lightly"] if feed == "lightly" else [])]
    for package in [*needed, *(["PIL"] if case.files else [])]:
        if importlib.util.find_spec(package) is None:
            return f"{package} is not installed (pip install 'barlow-fast[bench]')"
    return None


def version(feed: str) -> str:
    """The packages that do the work besides torch, with their versions."""
    return provenance.versions(PACKAGES.get(feed, ()))


def open_feed(
    feed: str, case: Case, folder: Path | None, kind: str = "cpu"
) -> AbstractContextManager[Iterator[int]]:
    """Images per batch, without an end. What runs in the background ends with the context.

    Args:
        feed: a name of `case.feeds` that is no kernel.
        case: what to load.
        folder: of the files, for a case of files.
        kind: of the device: 'cpu' or 'cuda'.

    Raises:
        DisagreementError: entering the context, or with the first batch.
    """
    if feed.startswith("ours-"):
        return ours(feed.removeprefix("ours-"), case, folder, devices.choose(kind))
    if feed.startswith("crops-"):
        return crops(feed.removeprefix("crops-"), case, folder)
    return elsewhere(feed, case, folder)


class Counts:
    """Images per batch, and how to wait until the device has all of them."""

    def __init__(self, counts: Iterator[int], device: Device) -> None:
        self._counts = counts
        self.settle = device.synchronize

    def __iter__(self) -> Iterator[int]:
        return self

    def __next__(self) -> int:
        return next(self._counts)


def _source(case: Case, folder: Path | None) -> Source:
    if case.files:
        return FolderSource(folder)
    return ArraySource(images.pixels(case.side, len(case.views.mean)))


@contextlib.contextmanager
def ours(loader: str, case: Case, folder: Path | None, device: Device) -> Iterator[Iterator[int]]:
    """This package's loader, held against torchvision in its first batch."""
    workers = device.loader_workers if loader != "arrays" else None
    with ViewLoader(
        _source(case, folder), case.views, case.batch_size, loader=loader, workers=workers,
        device=device.torch,
    ) as feed:  # fmt: skip

        def counted() -> Iterator[int]:
            for number, batch in enumerate(endless(feed)):
                if not number:
                    found = disagreement(feed, batch)
                    if found is not None:
                        raise DisagreementError(found)
                _check(batch.views, case)
                yield len(batch.index)

        yield Counts(counted(), device)


def disagreement(loader: ViewLoader, batch: Batch) -> str | None:
    """How a batch differs from what torchvision makes of the same parameters; None where it does
    not, or where torchvision is missing."""
    if importlib.util.find_spec("torchvision") is None:
        return None
    from bench.views import agreement

    here = batch._replace(views=tuple(view.cpu() for view in batch.views), index=batch.index.cpu())
    return agreement.problem(loader, here)


@contextlib.contextmanager
def elsewhere(name: str, case: Case, folder: Path | None) -> Iterator[Iterator[int]]:
    """The official recipe or lightly's, in a DataLoader."""
    from bench.views import recipes

    views = case.views
    transform = recipes.lightly(case.side) if name == "lightly" else None
    transform = transform or recipes.official(views, case.side)
    if case.files:
        dataset = recipes.Files(folder, transform)
    else:
        dataset = recipes.Pixels(images.pixels(case.side, len(views.mean)), transform)
    feed = recipes.loader(dataset, case.batch_size, WORKERS)

    def counted() -> Iterator[int]:
        for batch in endless(feed):
            _check(batch, case)
            yield len(batch[0])

    yield counted()


@contextlib.contextmanager
def crops(renderer: str, case: Case, folder: Path | None) -> Iterator[Iterator[int]]:
    """Decoded, cropped and resized to bytes; nothing after it."""
    source, size = _source(case, folder), case.batch_size
    if renderer == "dali":
        feed: Any = dali.DaliRenderer(
            source, case.views, size, threads=WORKERS, device="cpu", prefetch=PREFETCH
        )
    else:
        feed = WorkerRenderer(source, case.views, size, workers=WORKERS, prefetch=PREFETCH)

    def counted() -> Iterator[int]:
        under_way = 0
        for samples in endless(_Batches(len(source), size)):
            feed.submit(0, samples)
            under_way += 1
            if under_way == PREFETCH:
                yield len(feed.receive().samples)
                under_way -= 1

    try:
        yield counted()
    finally:
        feed.close()


def kernel_arguments(case: Case, folder: Path | None, device: torch.device) -> list[tuple]:
    """(crops, rows, mean, std) of each view of one batch; without a folder, of random pixels."""
    views = case.views
    if folder is None:
        samples = np.arange(case.batch_size)
        pixels = images.pixels(case.side, len(views.mean), case.batch_size)
        crops = [torch.from_numpy(pixels)] * len(views.views)
    else:
        source = _source(case, folder)
        samples = next(iter(batches(0, 0, len(source), case.batch_size, Shard(0, 1))))
        renderer = PilRenderer(source, views)
        renderer.submit(0, samples)
        crops = renderer.receive().crops
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


class _Batches:
    """The samples of one epoch, as often as one asks."""

    def __init__(self, count: int, size: int) -> None:
        self.count, self.size = count, size

    def __iter__(self) -> Iterator[Any]:
        return iter(batches(0, 0, self.count, self.size, Shard(0, 1)))


def endless(epoch: Iterable[Any]) -> Iterator[Any]:
    """Epoch after epoch."""
    return itertools.chain.from_iterable(itertools.repeat(epoch))


def _check(views: Iterable[torch.Tensor], case: Case) -> None:
    """All feeds yield the same kind of tensors."""
    want = (case.batch_size, len(case.views.mean), case.side, case.side)
    found = [(tuple(view.shape), view.dtype) for view in views]
    if found != [(want, torch.float32)] * len(case.views.views):
        raise DisagreementError(f"views are {found}, should be {want} in float32")
