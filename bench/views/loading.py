"""Ways to load the same images: generators of images per batch, without an end.

Each ends what it runs in the background when it is closed.
"""

from __future__ import annotations

import contextlib
import importlib.util
import io
import itertools
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from barlow_fast import kernels
from barlow_fast.data import Batch, ViewLoader, batches, jpeg
from barlow_fast.data.loader import cores_of_rank
from barlow_fast.data.order import Shard
from barlow_fast.data.rendering import dali
from barlow_fast.data.rendering.files import draw_views, resizer
from barlow_fast.data.rendering.threads import CHUNK, ThreadRenderer
from barlow_fast.data.sources import ArraySource, FolderSource, ShardSource, Source
from bench.devices import Device
from bench.views import images

if TYPE_CHECKING:
    from bench.views.feeds import Case

PREFETCH = 2
OFFICIAL, V2, LIGHTLY = "official", "torchvision-v2", "lightly"
STAGES = {
    "read": "read the file",
    "window": "header, parameters, windows",
    "decode": "decode",
    "crop": "crop and resize, both views",
    "photometric": "photometric kernel, both views",
}


class DisagreementError(Exception):
    """A feed does not make what the others make."""


@dataclass
class Task:
    """What a feed loads.

    Attributes:
        case: the images and their views.
        folder: of the files, where they are files.
        device: of the views.
        figures: become fields of the feed's row, by name.
    """

    case: Case
    folder: Path | None
    device: Device
    figures: dict[str, float] = field(default_factory=dict)

    def source(self, shards: bool = False) -> Source:
        """The images; as shards that were packed before."""
        case = self.case
        if case.photographs is None:
            return ArraySource(images.pixels(case.side, len(case.views.mean)))
        if shards:
            return ShardSource(images.packed(self.folder, case.photographs))
        return FolderSource(self.folder)

    def check(self, views: Iterable[torch.Tensor]) -> None:
        """All feeds yield the same kind of tensors."""
        case = self.case
        want = (case.batch_size, len(case.views.mean), case.side, case.side)
        found = [(tuple(view.shape), view.dtype) for view in views]
        if found != [(want, torch.float32)] * len(case.views.views):
            raise DisagreementError(f"views are {found}, should be {want} in float32")


def ours(
    task: Task, loader: str, shards: bool = False, reduced: bool = False, exact: bool = True
) -> Iterator[int]:
    """This package's loader, held against torchvision in its first batch. Where images are not
    decoded in their full size (`exact` false), the error of the views is a figure."""
    case = task.case
    views = replace(case.views, reduced_decoding=True) if reduced else case.views
    with ViewLoader(
        task.source(shards), views, case.batch_size, loader=loader, device=task.device.torch
    ) as feed:
        for number, batch in enumerate(endless(feed)):
            if not number and not exact:
                from bench.views import agreement

                task.figures["error_levels"] = agreement.error(feed, batch, task.source())
            elif not number and (found := disagreement(feed, batch)) is not None:
                raise DisagreementError(found)
            task.check(batch.views)
            yield len(batch.index)


def disagreement(loader: ViewLoader, batch: Batch) -> str | None:
    """How a batch differs from what torchvision makes of the same parameters; None where it does
    not, or where torchvision is missing."""
    if importlib.util.find_spec("torchvision") is None:
        return None
    from bench.views import agreement

    here = batch._replace(views=tuple(view.cpu() for view in batch.views), index=batch.index.cpu())
    return agreement.problem(loader, here)


def elsewhere(task: Task, recipe: str) -> Iterator[int]:
    """torchvision's transforms or lightly's, in a DataLoader."""
    from bench.views import recipes

    case = task.case
    if recipe == LIGHTLY:
        transform = recipes.lightly(case.side, case.views)
    else:
        transform = recipes.official(case.views, case.side, tensors=recipe == V2)
    if case.photographs is not None:
        dataset = recipes.files(task.folder, transform, tensors=recipe == V2)
    else:
        dataset = recipes.pixels(task.source().images.numpy(), transform, tensors=recipe == V2)
    for batch in endless(recipes.loader(dataset, case.batch_size, cores_of_rank())):
        task.check(batch)
        yield len(batch[0])


def crops(task: Task, renderer: str) -> Iterator[int]:
    """Decoded, cropped and resized to bytes; nothing after it."""
    source, case = task.source(), task.case
    options = {"prefetch": PREFETCH}
    if renderer == "dali":
        feed: Any = dali.DaliRenderer(
            source, case.views, case.batch_size, threads=cores_of_rank(), device="cpu", **options
        )
    else:
        feed = ThreadRenderer(source, case.views, workers=cores_of_rank(), **options)
    with contextlib.closing(feed):
        for under_way, samples in enumerate(samples_of(source, case)):
            feed.submit(0, samples)
            if under_way >= PREFETCH - 1:
                yield len(feed.receive().samples)


def decoded(task: Task, library: str) -> Iterator[int]:
    """Decoded by a library in a thread on each core, from memory; nothing after it."""
    decode, threads = _decoder(library), cores_of_rank()
    names = {path.stat().st_ino: path for path in sorted(task.folder.iterdir())}
    encoded = itertools.cycle([path.read_bytes() for path in names.values()])
    some = max(task.case.batch_size // 16, 1)

    def work(parts: list[bytes]) -> int:
        for part in parts:
            decode(part)
        return len(parts)

    with ThreadPoolExecutor(threads) as pool:
        under_way = deque()
        while True:
            while len(under_way) < 2 * threads:
                under_way.append(pool.submit(work, list(itertools.islice(encoded, some))))
            yield under_way.popleft().result()


def _decoder(library: str) -> Callable[[bytes], object]:
    """To RGB pixels, with the settings that give Pillow's."""
    if library == "simplejpeg":
        return jpeg.simplejpeg().decode_jpeg
    if library == "torchvision":
        from torchvision.io import ImageReadMode, decode_jpeg

        return lambda encoded: decode_jpeg(
            torch.frombuffer(bytearray(encoded), dtype=torch.uint8), ImageReadMode.RGB
        )
    from PIL import Image

    return lambda encoded: Image.open(io.BytesIO(encoded)).convert("RGB")


def staged(task: Task) -> Iterator[int]:
    """What `ours` does with files, in one thread and stage by stage, with the microseconds of each
    of STAGES per image as figures."""
    source, case = task.source(), task.case
    shape = (len(case.views.views), CHUNK, case.side, case.side, len(case.views.mean))
    pixels, views = torch.empty(shape, dtype=torch.uint8), torch.empty(shape)
    statistics = [torch.tensor(values) for values in (case.views.mean, case.views.std)]
    finish, crop_resize = kernels.load("cpu").photometric_in_thread, resizer()
    spent, images_done, last = dict.fromkeys(STAGES, 0.0), 0, 0.0

    def mark(stage: str) -> None:
        nonlocal last
        now = time.perf_counter()
        spent[stage] += now - last
        last = now

    for samples in samples_of(source, case):
        last = time.perf_counter()
        drawn = draw_views(case.views, 0, 0, samples)
        rows = [
            torch.from_numpy(each.parameters.photometric_rows(case.side, case.side))
            for each in drawn
        ]
        mark("window")
        for first in range(0, len(samples), CHUNK):
            chunk = slice(first, min(first + CHUNK, len(samples)))
            for row in range(chunk.start, chunk.stop):
                encoded = source.encoded(int(samples[row]))
                mark("read")
                frame = jpeg.plain_frame(encoded)
                windows = [each.windows.find(row, frame.height, frame.width) for each in drawn]
                mark("window")
                image = torch.from_numpy(jpeg.decode(encoded, frame))
                mark("decode")
                for each, window, out in zip(drawn, windows, pixels, strict=True):
                    crop_resize(image, window, each.specification.interpolation, out[row - first])
                mark("crop")
            count = chunk.stop - chunk.start
            for each, out, some in zip(pixels, views, rows, strict=True):
                finish(each[:count], some[chunk], *statistics, out[:count])
            mark("photometric")
        images_done += len(samples)
        task.figures |= {f"{name}_us": 1e6 * each / images_done for name, each in spent.items()}
        yield len(samples)


def samples_of(source: Source, case: Case) -> Iterator[np.ndarray]:
    """Those of batches, epoch after epoch."""
    while True:
        yield from batches(0, 0, len(source), case.batch_size, Shard(0, 1))


def endless(epoch: Iterable[Any]) -> Iterator[Any]:
    """Epoch after epoch."""
    return itertools.chain.from_iterable(itertools.repeat(epoch))
