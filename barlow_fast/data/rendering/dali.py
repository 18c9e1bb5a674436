"""Crops by NVIDIA DALI: one graph, on the CPU or on a GPU.

    encoded bytes -> decode once -> per view: cut the window out -> resize

The windows come from outside, so nothing in the graph is random. A thread of its own reads files,
feeds the graph and takes its outputs; the graph runs in DALI's threads.

DALI decodes damaged JPEGs that Pillow refuses, and images whose data end early. So Pillow reads
every file first when it comes for the first time (`decoding.check`, half of a decoding), and
decides for all loaders; suspect images are rendered by Pillow, which reports them. DALI also loses
the whole batch when it cannot decode one image: such a batch is run again in halves until the
images at fault stand alone. An image that DALI does not decode, or not as Pillow does, is rendered
by Pillow. Whether it is depends on the image alone: the same sample shows the same crop in whatever
batch it comes.

On a CPU images are decoded to the very same bytes as by Pillow, and resized to within a level; more
in the outermost ring of pixels of crops that are much smaller than their windows, where DALI
repeats the border and Pillow leaves the outside out.
"""

from __future__ import annotations

import contextlib
import queue
import sys
import threading
import weakref
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from ..decoding import MAX_PIXELS, check, pillow
from ..faults import BadImage, BadImageError
from ..parallel import PATIENCE, Task, Threads
from ..sources import ArraySource, Source
from ..views import draw
from ..whole import FRAMES, find_marker
from ..windows import windows
from . import Crops, check_room, crop_shapes, without
from .files import DrawnViews, crop_rows

if TYPE_CHECKING:
    from ..presets import Views

# Batches inside DALI: one that runs and one that waits for it, so that it never idles.
DEPTH = 2
READERS = 8  # threads that read files; storage across a network answers many at a time

# The smallest image there is, to run a graph once.
PIXEL = np.frombuffer(b"P6 1 1 255\n\0\0\0", np.uint8)

# What is known about how a sample is rendered.
UNKNOWN, BY_DALI, BY_PIL = range(3)


def why_unusable(device: torch.device | str = "cpu") -> str | None:
    """None when DALI can be used here, for crops on `device`, else the reason why not, in one
    line."""
    if sys.platform != "linux":
        return "NVIDIA DALI exists for Linux only"
    try:
        from nvidia.dali import Pipeline, fn
    except ImportError as error:
        if error.name in ("nvidia", "nvidia.dali", "nvidia.dali.fn"):
            return "NVIDIA DALI is not installed; pip install 'barlow-fast[dali]'"
        return f"NVIDIA DALI cannot be imported ({_in_one_line(error)})"
    device = torch.device(device)
    if device.type == "cuda":
        # A package for another CUDA than the driver's is importable, and fails here.
        try:
            pipeline = Pipeline(batch_size=1, num_threads=1, device_id=device.index or 0)
            with pipeline:
                pipeline.set_outputs(fn.constant(idata=[0]).gpu())
            pipeline.build()
        except RuntimeError as error:
            return f"NVIDIA DALI cannot use {device} ({_in_one_line(error)})"
    return None


def _in_one_line(error: Exception) -> str:
    return " ".join(str(error).split())[:300]


def decoded_alike(encoded: bytes) -> bool:
    """Whether DALI decodes these bytes to the very pixels that `decode_pixels` gives.

    So it does, on a CPU, for JPEG of 8 bits in gray and colour and PNG of 8 bits without a
    palette. Others differ or are refused (16 bits, GIF, AVIF), or are too rare to rely on.
    """
    if encoded.startswith(b"\xff\xd8\xff"):
        return _jpeg_frame(encoded) in ((8, 1), (8, 3))
    # IHDR comes first: bit depth, then type of colour; 0 gray, 2 colour, 6 colour with alpha.
    return encoded.startswith(b"\x89PNG\r\n\x1a\n") and encoded[24:26] in (
        b"\x08\x00",
        b"\x08\x02",
        b"\x08\x06",
    )


def _jpeg_frame(encoded: bytes) -> tuple[int, int] | None:
    """(bits, components) from the frame header of a baseline, extended or progressive JPEG."""
    at = find_marker(encoded, FRAMES)
    return None if at is None else (encoded[at + 4], encoded[at + 9])


class Graph:
    """A pipeline of DALI, fed by hand. For one thread.

    Args:
        views: what is drawn.
        shapes: (H, W, C) of each view.
        batch_size: the largest batch.
        threads: of DALI.
        device: of the crops; on a GPU JPEG is decoded there.
        decodes: whether images come encoded; else as (H, W, C) uint8.
    """

    def __init__(
        self,
        views: Views,
        shapes: list[tuple[int, int, int]],
        batch_size: int,
        threads: int,
        device: torch.device,
        decodes: bool = True,
        stream: torch.cuda.Stream | None = None,
    ) -> None:
        from nvidia.dali import Pipeline, fn, types

        interpolation = {"bicubic": types.INTERP_CUBIC, "bilinear": types.INTERP_LINEAR}
        on_gpu = device.type == "cuda"
        self._stream = stream
        self._pipeline = Pipeline(
            batch_size=batch_size,
            num_threads=threads,
            device_id=(device.index or 0) if on_gpu else None,
            prefetch_queue_depth=DEPTH,
        )
        with self._pipeline:
            if decodes:
                images = fn.decoders.image(
                    fn.external_source(name="images", ndim=1, dtype=types.UINT8),
                    device="mixed" if on_gpu else "cpu",
                    output_type=types.RGB,
                    # As Pillow does it; the default would be faster on a GPU only.
                    jpeg_fancy_upsampling=True,
                    adjust_orientation=False,
                )
            else:
                images = fn.external_source(name="images", layout="HWC", dtype=types.UINT8)
                images = images.gpu() if on_gpu else images
            outputs = []
            for number, (view, shape) in enumerate(zip(views.views, shapes, strict=True)):
                start, size = (
                    fn.external_source(name=f"{name}{number}", ndim=1, dtype=types.INT32)
                    for name in ("start", "size")
                )
                # Cutting comes first: `resize` with a region of interest looks beyond its border.
                window = fn.slice(images, start=start, shape=size, axes=(0, 1))
                outputs.append(
                    fn.resize(
                        window,
                        size=shape[:2],
                        interp_type=interpolation[view.interpolation],
                        antialias=True,
                    )
                )
            self._pipeline.set_outputs(*outputs)
        self._pipeline.build()
        # The first `schedule_run` of a pipeline starts DEPTH runs and every later one a single one;
        # from here on it is one for one.
        first = PIXEL if decodes else np.zeros((1, 1, shapes[0][2]), np.uint8)
        whole = np.array([[0, 0, 1, 1]], np.int32)
        for _ in range(DEPTH):
            self._feed([first], [whole] * len(shapes))
        self._pipeline.schedule_run()
        for _ in range(DEPTH):
            self.finish()

    def start(self, images: list[np.ndarray], cut: list[np.ndarray]) -> None:
        """Starts a batch; at most DEPTH at a time.

        Args:
            images: B times encoded bytes, or (H, W, C) uint8.
            cut: per view (B, 4) int32 windows, as `windows` returns them.
        """
        self._feed(images, cut)
        self._pipeline.schedule_run()

    def finish(self) -> list[Tensor]:
        """(B, H, W, C) uint8 crops per view of the oldest batch; they stay valid.

        Raises:
            RuntimeError: an image was not decoded; the graph is of no use afterwards.
        """
        outputs = self._pipeline.share_outputs(cuda_stream=self._stream)
        # The buffers are counted references here, not recycled ones: no copy is needed.
        crops = [torch.from_dlpack(output.as_tensor()) for output in outputs]
        self._pipeline.release_outputs()
        return crops

    def _feed(self, images: list[np.ndarray], cut: list[np.ndarray]) -> None:
        self._pipeline.feed_input("images", images)
        for number, values in enumerate(cut):
            self._pipeline.feed_input(f"start{number}", np.ascontiguousarray(values[:, :2]))
            self._pipeline.feed_input(f"size{number}", np.ascontiguousarray(values[:, 2:]))


@dataclass
class _Batch:
    """One on its way through the engine."""

    epoch: int
    samples: np.ndarray
    rows: np.ndarray  # those that DALI renders
    images: list[np.ndarray]  # of these rows
    cut: list[np.ndarray]  # of these rows, per view
    by_pil: list[int]  # rows
    bad: list[tuple[int, BadImage]]


class _Engine:
    """The work of the renderer's thread, without a reference to the renderer, so that that can be
    collected."""

    def __init__(
        self,
        source: Source,
        views: Views,
        seed: int,
        shapes: list[tuple[int, int, int]],
        device: torch.device,
        stream: torch.cuda.Stream | None,
        build: Callable[[], Graph],
    ) -> None:
        self.source, self.views, self.seed, self.shapes = source, views, seed, shapes
        self.device, self.stream, self.build = device, stream, build
        self.tasks: queue.SimpleQueue[tuple[int, np.ndarray] | None] = queue.SimpleQueue()
        self.results: queue.SimpleQueue[Crops | BaseException] = queue.SimpleQueue()
        self.stopped = threading.Event()
        self.readers = Threads(READERS)
        self.running: deque[_Batch] = deque()
        self.sizes = np.zeros((len(source), 2), np.int32)
        self.route = np.full(len(source), UNKNOWN, np.int8)
        self.graph: Graph | None = None

    def run(self) -> None:
        """Batches from `tasks` to `results`, in order, until `stop`."""
        try:
            self.graph = self.build()
            while not self.stopped.is_set():
                try:
                    task = self.tasks.get(block=not self.running)
                except queue.Empty:
                    self.finish()
                    continue
                if task is None:
                    break
                self.start(*task)
                if len(self.running) == DEPTH:
                    self.finish()
        except BaseException as error:
            self.results.put(error)
        finally:
            self.readers.end(PATIENCE)
            # DALI's threads end here, and not when the engine is collected.
            self.graph = None
            self.running.clear()

    def stop(self) -> None:
        self.stopped.set()
        self.tasks.put(None)

    def start(self, epoch: int, samples: np.ndarray) -> None:
        parts = np.array_split(samples, READERS)
        tasks = [self.readers.put(Task(self.read, part)) for part in parts]
        read = [image for task in tasks for image in task.outcome()]
        bad = [(row, image) for row, image in enumerate(read) if isinstance(image, BadImage)]
        readable = [row for row, image in enumerate(read) if not isinstance(image, BadImage)]
        by_dali = [row for row in readable if self.route[samples[row]] == BY_DALI]
        by_pil = [row for row in readable if self.route[samples[row]] != BY_DALI]
        rows = np.array(by_dali, np.int64)
        batch = _Batch(epoch, samples, rows, [read[row] for row in by_dali], [], by_pil, bad)
        if by_dali:
            some = samples[rows]
            heights, widths = self.sizes[some].T
            batch.cut = [
                windows(draw(view, self.seed, epoch, some, number), view, heights, widths)
                for number, view in enumerate(self.views.views)
            ]
            self.graph.start(batch.images, batch.cut)
        self.running.append(batch)

    def read(self, samples: np.ndarray) -> list[np.ndarray | BadImage]:
        """The images as the graph takes them. Their sizes and routes are known afterwards."""
        return [self.read_one(sample) for sample in samples.tolist()]

    def read_one(self, sample: int) -> np.ndarray | BadImage:
        if isinstance(self.source, ArraySource):
            self.sizes[sample] = self.source.images.shape[1:3]
            self.route[sample] = BY_DALI
            return self.source.images[sample].numpy()
        try:
            encoded = self.source.encoded(sample)
            if self.route[sample] == UNKNOWN:
                if decoded_alike(encoded):
                    limit = getattr(self.source, "max_pixels", MAX_PIXELS)
                    identity = self.source.identity(sample)
                    *size, warning = check(encoded, identity, sample, limit)
                    self.sizes[sample] = size
                    self.route[sample] = BY_PIL if warning else BY_DALI
                else:
                    self.route[sample] = BY_PIL
        except BadImageError as error:
            return error.image
        return np.frombuffer(encoded, np.uint8)

    def finish(self) -> None:
        """Hands out the oldest batch."""
        batch = self.running.popleft()
        # Pillow's share first, while DALI is busy.
        parts = self.rendered_by_pil(batch, batch.by_pil)
        if len(batch.rows):
            try:
                parts.append((batch.rows, self.graph.finish()))
            except RuntimeError as error:
                parts += self.rendered_in_halves(batch, error)
        whole = len(parts) == 1 and len(parts[0][0]) == len(batch.samples)
        crops = parts[0][1] if whole else self.merged(parts, len(batch.samples))
        bad = sorted(batch.bad, key=lambda item: item[0])
        self.results.put(without(Crops(crops, batch.samples, []), bad))

    def rendered_by_pil(
        self, batch: _Batch, rows: list[int]
    ) -> list[tuple[np.ndarray, list[Tensor]]]:
        """[(rows, their crops)], or none; rows without an image are added to `batch.bad`."""
        if not rows:
            return []
        crops = [
            torch.zeros(len(rows), *shape, dtype=torch.uint8, device="cpu") for shape in self.shapes
        ]
        samples = batch.samples[rows]
        drawn = DrawnViews(self.views, self.seed, batch.epoch, samples, self.shapes)
        found = crop_rows(self.source, drawn, range(len(rows)), crops)
        batch.bad += [(rows[row], image) for row, image in found]
        return [(np.array(rows), [view.to(self.device) for view in crops])]

    def rendered_in_halves(
        self, batch: _Batch, error: RuntimeError
    ) -> list[tuple[np.ndarray, list[Tensor]]]:
        """The rows of a batch that DALI lost: by DALI where it can, else by Pillow."""
        self.graph = self.build()
        parts, refused = [], []
        left = np.array_split(np.arange(len(batch.rows)), 2)
        while left and not self.stopped.is_set():
            some = left.pop()
            if not len(some):
                continue
            try:
                self.graph.start([batch.images[at] for at in some], [c[some] for c in batch.cut])
                parts.append((batch.rows[some], self.graph.finish()))
            except RuntimeError:
                self.graph = self.build()
                if len(some) > 1:
                    left += np.array_split(some, 2)
                else:
                    refused.append(int(batch.rows[some[0]]))
        # From now on these are kept out of DALI's batches.
        self.route[batch.samples[refused]] = BY_PIL
        known = len(batch.bad)
        parts += self.rendered_by_pil(batch, refused)
        if len(refused) == len(batch.rows) > 1 and len(batch.bad) == known:
            # Nothing is wrong with the images.
            raise error
        # What had been started after the lost batch was lost as well.
        for later in self.running:
            if len(later.rows):
                self.graph.start(later.images, later.cut)
        return parts

    def merged(self, parts: list[tuple[np.ndarray, list[Tensor]]], count: int) -> list[Tensor]:
        """One batch from parts of its rows."""
        with torch.cuda.stream(self.stream) if self.stream else contextlib.nullcontext():
            merged = [
                torch.zeros(count, *shape, dtype=torch.uint8, device=self.device)
                for shape in self.shapes
            ]
            for rows, crops in parts:
                index = torch.from_numpy(rows).to(self.device)
                for view, some in zip(merged, crops, strict=True):
                    view.index_copy_(0, index, some)
        return merged


class DaliRenderer:
    """Renders with NVIDIA DALI.

    Args:
        source, views, seed: as for `ThreadRenderer`; three channels unless the source is an array.
        batch_size: the largest batch.
        threads: of DALI.
        prefetch: how many batches may be under way. Memory: the crops of as many batches, and
            the files and decoded images of `DEPTH`.
        device: 'cpu', or a GPU. There JPEG is decoded by the GPU, and crops are ready in the
            order of `stream`.

    Raises:
        ImportError: DALI or Pillow is missing or unusable.
        ValueError: views that need another renderer.
    """

    def __init__(
        self,
        source: Source,
        views: Views,
        batch_size: int,
        *,
        threads: int = 2,
        seed: int = 0,
        prefetch: int = 2,
        device: torch.device | str = "cpu",
    ) -> None:
        device = torch.device(device)
        problem = why_unusable(device)
        if problem is not None:
            raise ImportError(problem)
        arrays = isinstance(source, ArraySource)
        if not arrays:
            pillow()
            if len(views.mean) != 3:
                raise ValueError(
                    f"DALI decodes files to three channels, {views.name!r} has {len(views.mean)}: "
                    "use loader='pil'"
                )
        shapes = crop_shapes(source, views)
        self.stream = torch.cuda.Stream(device) if device.type == "cuda" else None
        self._prefetch = prefetch
        self._count = 0  # batches under way
        self._closed = False

        def build() -> Graph:
            return Graph(views, shapes, batch_size, threads, device, not arrays, stream)

        stream = self.stream
        self._engine = _Engine(source, views, seed, shapes, device, stream, build)
        thread = threading.Thread(target=self._engine.run, name="barlow_fast dali", daemon=True)
        self._finalizer = weakref.finalize(self, _end, self._engine, thread)
        thread.start()

    def submit(self, epoch: int, samples: np.ndarray) -> None:
        check_room(self._closed, self._count, self._prefetch)
        self._count += 1
        self._engine.tasks.put((epoch, samples))

    def receive(self) -> Crops:
        if self._closed:
            raise RuntimeError("the renderer is closed")
        if not self._count:
            raise RuntimeError("no batch is under way")
        result = self._engine.results.get()
        if isinstance(result, BaseException):
            self.close()
            raise RuntimeError(f"DALI failed: {result}") from result
        self._count -= 1
        return result

    def close(self) -> None:
        self._closed = True
        self._count = 0
        self._finalizer()


def _end(engine: _Engine, thread: threading.Thread) -> None:
    """Waits for the batch in work, not for those behind it."""
    engine.stop()
    # A collection of garbage can happen in any thread.
    if thread is not threading.current_thread():
        thread.join()
