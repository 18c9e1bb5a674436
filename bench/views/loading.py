"""What feeds do: generators of counts per batch, without an end.

Each ends what it runs in the background when it is closed.
"""

from __future__ import annotations

import contextlib
import functools
import io
import itertools
import math
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from barlow_fast import kernels
from barlow_fast.data import ViewLoader, Views, jpeg
from barlow_fast.data.parallel import cores_of_rank
from barlow_fast.data.rendering import dali, files, native_crop
from barlow_fast.data.rendering.files import DrawnViews, by_pillow
from barlow_fast.data.rendering.threads import CHUNK, ThreadRenderer
from barlow_fast.data.sources import ArraySource, FolderSource, ShardSource, Source
from barlow_fast.data.windows import reduced, reduction
from bench.devices import Device
from bench.views import agreement, images
from bench.views.agreement import DisagreementError
from bench.views.images import Case

CropResize = Callable[[Tensor, tuple[int, int, int, int], str, Tensor], None]

PREFETCH = 2
STAGES = {
    "read": "read the file",
    "window": "header, parameters, windows",
    "decode": "decode",
    "crop": "crop and resize, both views",
    "photometric": "photometric kernel, both views",
}


@dataclass
class Task:
    """What a feed loads.

    Attributes:
        case: the images and their views.
        folder: of the files, where they are files.
        device: of the views.
        figures: become fields of the feed's row.
    """

    case: Case
    folder: Path | None
    device: Device
    figures: dict[str, float] = field(default_factory=dict)

    def source(self, shards: bool = False) -> Source:
        """The images; of shards that were packed before."""
        case = self.case
        if case.photographs is None:
            return ArraySource(images.pixels(case.side, len(case.views.mean)))
        if shards:
            return ShardSource(images.packed(self.folder, case.photographs))
        return FolderSource(self.folder)

    def drawn(self, samples: np.ndarray) -> DrawnViews:
        """The views of a batch."""
        shape = (self.case.side, self.case.side, len(self.case.views.mean))
        return DrawnViews(self.case.views, 0, 0, samples, [shape] * len(self.case.views.views))

    def check(self, views: Iterable[Tensor]) -> None:
        """All feeds yield the same kind of tensors."""
        case = self.case
        want = (case.batch_size, len(case.views.mean), case.side, case.side)
        found = [(tuple(view.shape), view.dtype) for view in views]
        if found != [(want, torch.float32)] * len(case.views.views):
            raise DisagreementError(f"views are {found}, should be {want} in float32")


def ours(
    task: Task, loader: str, shards: bool = False, margin: float = 0.0, exact: bool = True
) -> Iterator[int]:
    """This package's loader, its first batch checked. Where images are not decoded in their full
    size (`exact` false), the errors of the crops are figures.

    Args:
        task: the images.
        loader: as of `ViewLoader`.
        shards: whether images are in shards.
        margin: of reduced decoding (`reduction`); 0: images are decoded in their full size.
        exact: whether the views must be those of the images.
    """
    case, source = task.case, task.source(shards)
    views = replace(case.views, reduced_decoding=margin > 0)
    feed = ViewLoader(source, views, case.batch_size, loader=loader, device=task.device.torch)
    with _margin(margin), feed:
        if not exact:
            task.figures |= crop_errors(case, source, views, task.source())
        for number, batch in enumerate(endless(feed)):
            if not number and exact:
                agreement.check(feed, batch)
            task.check(batch.views)
            yield len(batch.index)


@contextlib.contextmanager
def _margin(margin: float) -> Iterator[None]:
    """Sets the margin of reduced decoding in this process."""
    files.reduction = functools.partial(reduction, margin=margin)
    try:
        yield
    finally:
        files.reduction = reduction


def crop_errors(case: Case, source: Source, views: Views, whole: Source) -> dict[str, float]:
    """Differences of the crops of a batch, before the photometric part, from those of images in
    their full size: in levels of 255 the mean and the largest, and the ratio of white to their root
    mean square in dB."""
    pair = []
    samples = next(case.samples(len(whole)))
    for each, drawn in ((source, views), (whole, case.views)):
        with contextlib.closing(ThreadRenderer(each, drawn, workers=cores_of_rank())) as renderer:
            renderer.submit(0, samples)
            pair.append(torch.stack(renderer.receive().crops).double())
    errors = (pair[0] - pair[1]).abs()
    return {
        "error_levels": float(errors.mean()),
        "largest_levels": float(errors.max()),
        "psnr_db": 20 * math.log10(255 / max(float(errors.square().mean().sqrt()), 1e-9)),
    }


def elsewhere(task: Task, recipe: str) -> Iterator[int]:
    """torchvision's transforms or lightly's, in a DataLoader."""
    from bench.views import recipes

    case = task.case
    given = task.folder if case.photographs is not None else task.source().images.numpy()
    options = recipe, case.views, case.side, given, case.batch_size, cores_of_rank()
    for batch in recipes.batches(*options):
        task.check(batch)
        yield len(batch[0])


def crops(task: Task, renderer: str) -> Iterator[int]:
    """Decoded, cropped and resized to bytes; nothing after it."""
    source, case, cores = task.source(), task.case, cores_of_rank()
    if renderer == "dali":
        feed: Any = dali.DaliRenderer(
            source, case.views, case.batch_size, threads=cores, device="cpu", prefetch=PREFETCH
        )
    else:
        feed = ThreadRenderer(source, case.views, workers=cores, prefetch=PREFETCH)
    with contextlib.closing(feed):
        for under_way, samples in enumerate(case.samples(len(source))):
            feed.submit(0, samples)
            if under_way >= PREFETCH - 1:
                yield len(feed.receive().samples)


def decoded(task: Task, library: str, divisor: int = 1) -> Iterator[int]:
    """Decoded by a library in a thread on each core, from memory; nothing after it. `divisor`: of
    the sides, one of `REDUCTIONS`, for simplejpeg."""
    decode, threads = _decoder(library, divisor), cores_of_rank()
    paths = {path.stat().st_ino: path for path in task.folder.iterdir()}  # each once
    encoded = itertools.cycle([path.read_bytes() for path in paths.values()])
    some = max(task.case.batch_size // 16, 1)

    def work(parts: list[bytes]) -> int:
        return sum(decode(part) is not None for part in parts)

    with ThreadPoolExecutor(threads) as pool:
        under_way = deque()
        while True:
            while len(under_way) < 2 * threads:
                under_way.append(pool.submit(work, list(itertools.islice(encoded, some))))
            yield under_way.popleft().result()


def _decoder(library: str, divisor: int) -> Callable[[bytes], object]:
    """To RGB pixels, with the settings that give Pillow's."""
    if divisor > 1:
        return lambda encoded: jpeg.decode(encoded, jpeg.plain_frame(encoded), divisor)
    if library == "simplejpeg":
        return jpeg.simplejpeg().decode_jpeg
    if library == "torchvision":
        from torchvision.io import ImageReadMode, decode_jpeg

        return lambda encoded: decode_jpeg(
            torch.frombuffer(bytearray(encoded), dtype=torch.uint8), ImageReadMode.RGB
        )
    from PIL import Image

    return lambda encoded: Image.open(io.BytesIO(encoded)).convert("RGB")


def cropped(task: Task, crop_resize: CropResize, instruction_set: str = "") -> Iterator[int]:
    """Windows of a few images, which stay in a core's cache as they do in a loader, resized; with
    an instruction set by the native kernel, which must have Pillow's bits."""
    source, case = task.source(), task.case
    if instruction_set:
        kernels.load("cpu").use_instruction_set(instruction_set)
    samples = next(case.samples(len(source)))
    pixels = [torch.from_numpy(source.pixels(int(each)).pixels) for each in samples[:CHUNK]]
    drawn = task.drawn(samples)
    cuts = [
        (image, window, interpolation)
        for row, image in zip(range(len(samples)), itertools.cycle(pixels), strict=False)
        for window, interpolation in zip(
            drawn.windows(row, *image.shape[:2]), drawn.interpolations, strict=True
        )
    ]
    out, wanted = torch.empty(2, len(cuts), case.side, case.side, 3, dtype=torch.uint8)
    for cut, to, pillows in zip(cuts, out, wanted, strict=True):
        crop_resize(*cut, to)
        by_pillow(*cut, pillows)
    errors = (out.int() - wanted.int()).abs()
    if instruction_set and errors.any():
        raise DisagreementError(f"up to {int(errors.max())} levels from Pillow")
    task.figures["differing_share"] = float((errors > 0).double().mean())
    task.figures["largest_levels"] = float(errors.max())
    while True:
        for cut, to in zip(cuts, out, strict=True):
            crop_resize(*cut, to)
        yield len(cuts)


def native(*arguments: Any) -> None:
    """`crop_resize` in C++."""
    kernels.load("cpu").crop_resize(*arguments)


def interpolate(
    image: Tensor, window: tuple[int, int, int, int], interpolation: str, out: Tensor
) -> None:
    """`crop_resize` by torch, antialiased."""
    top, left, height, width = window
    part = image.permute(2, 0, 1)[None, :, top : top + height, left : left + width]
    size = tuple(out.shape[:2])
    found = functional.interpolate(part, size, mode=interpolation, antialias=True)
    out.copy_(found[0].permute(1, 2, 0))


def staged(task: Task, margin: float = 0.0) -> Iterator[int]:
    """What `ours` does with files, in one thread and stage by stage, with the microseconds of each
    of STAGES per image as figures. `margin`: as of `ours`."""
    source, case = task.source(), task.case
    shape = (len(case.views.views), CHUNK, case.side, case.side, len(case.views.mean))
    pixels, views = torch.empty(shape, dtype=torch.uint8), torch.empty(shape)
    statistics = [torch.tensor(values) for values in (case.views.mean, case.views.std)]
    finish, crop_resize = kernels.load("cpu").photometric_in_thread, native_crop() or by_pillow
    spent, total, last = dict.fromkeys(STAGES, 0.0), 0, 0.0

    def mark(stage: str) -> None:
        nonlocal last
        now = time.perf_counter()
        spent[stage] += now - last
        last = now

    for samples in case.samples(len(source)):
        last = time.perf_counter()
        drawn = task.drawn(samples)
        parameters = [each.photometric_rows(case.side, case.side) for each in drawn.parameters]
        for row, sample in enumerate(samples.tolist()):
            mark("window")
            encoded = source.encoded(sample)
            mark("read")
            frame = jpeg.plain_frame(encoded)
            windows, divisor = drawn.windows(row, frame.height, frame.width), 1
            if margin:
                divisor = reduction(np.array(windows), drawn.shapes, margin)
                windows = reduced(np.array(windows), divisor).tolist()
            mark("window")
            image = torch.from_numpy(jpeg.decode(encoded, frame, divisor))
            mark("decode")
            count = row % CHUNK + 1
            for window, way, out in zip(windows, drawn.interpolations, pixels, strict=True):
                crop_resize(image, window, way, out[count - 1])
            mark("crop")
            if count == CHUNK or row + 1 == len(samples):
                for some, each, out in zip(parameters, pixels, views, strict=True):
                    rows = torch.from_numpy(some[row + 1 - count : row + 1])
                    finish(each[:count], rows, *statistics, out[:count])
                mark("photometric")
        total += len(samples)
        task.figures |= {f"{name}_us": 1e6 * each / total for name, each in spent.items()}
        yield len(samples)


def endless(epoch: Iterable[Any]) -> Iterator[Any]:
    """Epoch after epoch."""
    return itertools.chain.from_iterable(itertools.repeat(epoch))
