"""Batches of views, ready for an encoder: what a training loop iterates over."""

from __future__ import annotations

import contextlib
import functools
import logging
import math
from collections import deque
from collections.abc import Iterator
from typing import Any, Literal, NamedTuple, get_args

import numpy as np
import torch
from torch import Tensor

from .faults import BadImage, BadImageError, BadImages, OnBadImage
from .order import Position, Shard, batches, batches_per_epoch
from .parallel import TIMEOUT, cores_of_rank, default_workers
from .presets import Views
from .render import photometric_kernel
from .rendering import Crops, Renderer, dali, less
from .rendering.arrays import ArrayRenderer
from .rendering.threads import Finish, ThreadRenderer
from .sources import ArraySource, Source
from .views import draw

LOG = logging.getLogger("barlow_fast.data")

LoaderName = Literal["auto", "arrays", "pil", "dali"]
LOADERS = get_args(LoaderName)[1:]

# What must be equal for a state to be continued, with the words that name it in a refusal.
IDENTITY = {
    "seed": "seed",
    "samples": "number of images",
    "images": "fingerprint of the images' names, sizes and labels",
    "views": "fingerprint of the views' specification",
    "global_batch_size": "batch size over all ranks",
    "drop_last": "drop_last",
}


class Batch(NamedTuple):
    """The views of one rank for one step."""

    views: tuple[Tensor, ...]  # each (B, C, H, W), channels-last, on the loader's device
    index: Tensor  # (B,) int64 sample numbers, on the device
    label: Tensor  # (B,) int64, -1 where there is none, on the device


class ViewLoader:
    """Iterates over the views of a source.

        with ViewLoader(source, PRESETS["imagenet"], 256) as loader:
            for _ in range(epochs):
                for (view_a, view_b), index, label in loader:
                    ...

    Every view is a pure function of (seed, epoch, sample, number of the view), and the order of
    samples one of (seed, epoch). So the same views come from any number of workers and ranks, and
    from any batch size, and resuming a run takes a position, not a generator's state.

    One iteration yields the rest of the current epoch, from the loader's position on, and moves it:
    after a `break` the next iteration continues with the batch that follows, after the last
    batch with the next epoch.

    Args:
        source: of images; see `open_source`.
        views: what is drawn from each image.
        batch_size: samples per batch of this rank.
        seed: in [0, 2**64).
        rank, ranks: which part of every global batch is ours (`batches`).
        loader: 'arrays', 'pil', 'dali', or 'auto': arrays for images in memory; for files DALI
            where views are requested on a GPU that it can use, else 'pil': Pillow's pixels, by
            faster libraries where they are the same. Crops of the two differ by a level here and
            there (README.md).
        workers: threads of 'pil' (0: none, the calling thread renders) or of DALI; None for as many
            as this rank's share of the machine's cores.
        device: of the views.
        dtype: of the views: float32, bfloat16 or float16.
        drop_last: whether an epoch's remainder that fills no global batch is left out.
        on_bad_image: 'error': an image that cannot be read raises; 'skip': it is left out of its
            batch, which is shorter then, and reported once. No other takes its place, so ranks may
            differ in batch size. 'strict': so are suspect images, which are decoded with a warning;
            otherwise these are reported once and used. A `BadImages` is a policy with a record that
            others share.
        prefetch: how many batches are rendered ahead; memory is bounded by it.
        timeout: seconds to wait for an image of 'pil' before storage counts as stopped; 0: without
            limit.

    Attributes:
        chosen: 'arrays', 'pil' or 'dali'.
        reason: why, in one line.

    Raises:
        TypeError: an argument of another type.
        ValueError: an argument out of its range, fewer images than one global batch, views that
            the loader cannot render.
        ImportError: the requested loader cannot be used here.
    """

    def __init__(
        self,
        source: Source,
        views: Views,
        batch_size: int,
        *,
        seed: int = 0,
        rank: int = 0,
        ranks: int = 1,
        loader: LoaderName = "auto",
        workers: int | None = None,
        device: torch.device | str = "cpu",
        dtype: torch.dtype = torch.float32,
        drop_last: bool = True,
        on_bad_image: OnBadImage | BadImages = "error",
        prefetch: int = 2,
        timeout: float = TIMEOUT,
    ) -> None:
        if not isinstance(source, Source):
            raise TypeError(f"source must be of images, such as open_source(path), got {source!r}")
        if not isinstance(views, Views):
            raise TypeError(f'views must be Views, such as PRESETS["imagenet"], got {views!r}')
        _check_whole(batch_size=batch_size, seed=seed, rank=rank, ranks=ranks, prefetch=prefetch)
        if dtype not in (torch.float32, torch.bfloat16, torch.float16):
            raise ValueError(f"dtype must be float32, bfloat16 or float16, got {dtype}")
        if prefetch < 1:
            raise ValueError(f"prefetch must be at least 1, got {prefetch}")
        check_loading(loader, workers, on_bad_image, timeout)
        self.source, self.views = source, views
        self.batch_size, self.seed, self.drop_last = batch_size, seed, drop_last
        self.shard = Shard(rank, ranks)
        self.device, self.dtype = torch.device(device), dtype
        self.prefetch = prefetch
        self._timeout = timeout
        self._bad = BadImages.of(on_bad_image)
        # Refuses what cannot be cut into batches before anything is started.
        batches(seed, 0, len(source), batch_size, self.shard, drop_last)
        if not len(self):
            raise ValueError(
                f"{source.name} has {len(source)} images, fewer than one batch of "
                f"{batch_size * ranks}"
            )
        self.chosen, self.reason = choose_loader(loader, source, views, self.device)
        self._mean, self._std = (
            torch.tensor(values, dtype=torch.float32, device=self.device)
            for values in (views.mean, views.std)
        )
        self._finish: Finish | None = None
        if self.chosen == "pil" and Finish.possible(self.device):
            self._finish = Finish(self._mean, self._std, dtype)
        self._renderer = self._build_renderer(workers)
        LOG.info("loader: %s (%s)", self.chosen, self.reason)
        self._position = Position()
        self._under_way: deque[np.ndarray] = deque()
        self._iteration = 0
        self._closed = False
        self._labels = source.labels
        self._photometric = photometric_kernel(self.device)
        self._stream: torch.cuda.Stream | None = None
        if self.device.type == "cuda":
            stream = getattr(self._renderer, "stream", None)
            self._stream = stream or torch.cuda.Stream(self.device)
            self._stream.wait_stream(torch.cuda.current_stream(self.device))

    def __repr__(self) -> str:
        return (
            f"ViewLoader({self.source!r}, batch_size={self.batch_size}, loader={self.chosen!r}, "
            f"device='{self.device}', rank {self.shard.rank} of {self.shard.ranks}, "
            f"epoch {self.epoch}, batch {self._position.batch} of {len(self)})"
        )

    def __len__(self) -> int:
        """Batches per epoch, the same on every rank."""
        return batches_per_epoch(
            len(self.source), self.batch_size, self.shard.ranks, self.drop_last
        )

    @property
    def epoch(self) -> int:
        """That of the batch that comes next."""
        return self._position.epoch

    @property
    def bad_images(self) -> list[BadImage]:
        """Those that were skipped, each once."""
        return self._bad.images

    @property
    def suspect_images(self) -> list[BadImage]:
        """Those that were decoded with a warning, each once; skipped under 'strict'."""
        return self._bad.suspects

    @property
    def suspects(self) -> str:
        """Their number and what is done about them, in words."""
        return self._bad.describe_suspects()

    def set_epoch(self, epoch: int) -> None:
        """Set the position to the beginning of an epoch, unless the loader is in it already: an
        epoch that was resumed in its middle continues there."""
        if epoch != self.epoch:
            self._position = Position(epoch)

    def __iter__(self) -> Iterator[Batch]:
        """The rest of the epoch.

        Raises:
            BadImageError: when its batch is due, an image that cannot be read, under the policy
                'error'; under 'skip', a batch of which no image can be read.
            RuntimeError: a thread failed or does not answer, the loader is closed, or another
                iteration has begun.
        """
        if self._closed:
            raise RuntimeError("the loader is closed")
        self._discard()
        self._iteration += 1
        return self._rest_of_epoch(self._iteration, self._position)

    def _rest_of_epoch(self, iteration: int, start: Position) -> Iterator[Batch]:
        samples = batches(
            self.seed,
            start.epoch,
            len(self.source),
            self.batch_size,
            self.shard,
            self.drop_last,
            start.batch,
        )
        # On a GPU one more batch is finished ahead: its transfer and photometric part then overlap
        # with the caller's step, even if that waits for its results.
        lead = 1 if self._stream is None else 2
        ready: deque[tuple[Batch, torch.cuda.Event | None]] = deque()
        for number in range(start.batch, len(self)):
            if iteration != self._iteration:
                raise RuntimeError("another iteration over this loader has begun")
            if self._closed:
                raise RuntimeError("the loader is closed")
            while len(ready) < min(lead, len(self) - number):
                ready.append(self._next(start.epoch, samples))
            batch = self._taken_over(*ready.popleft())
            last = number + 1 == len(self)
            self._position = Position(start.epoch + last, 0 if last else number + 1)
            yield batch

    def _next(
        self, epoch: int, samples: Iterator[np.ndarray]
    ) -> tuple[Batch, torch.cuda.Event | None]:
        """The batch that was submitted first, finished, and what to wait for before using it."""
        with torch.cuda.stream(self._stream) if self._stream else contextlib.nullcontext():
            self._fill(epoch, samples)
            crops = self._receive()
            # Before this process is busy itself.
            self._fill(epoch, samples)
            batch = self._finished(epoch, crops)
        return batch, self._stream.record_event() if self._stream else None

    def _fill(self, epoch: int, samples: Iterator[np.ndarray]) -> None:
        while len(self._under_way) < self.prefetch:
            some = next(samples, None)
            if some is None:
                return
            # First: Ctrl-C may come in between, and `_discard` looks for all of these.
            self._under_way.append(some)
            # An epoch's remainder may leave a rank without a sample.
            if len(some):
                self._renderer.submit(epoch, some)

    def _receive(self) -> Crops:
        samples = self._under_way[0]
        # A wait that Ctrl-C ends has received nothing.
        crops = self._renderer.receive() if len(samples) else Crops([], samples, [])
        self._under_way.popleft()
        if not len(samples):
            return crops
        left_out = [image.index for image in crops.bad if self._bad.add(image)]
        crops = less(crops, np.flatnonzero(np.isin(crops.samples, left_out)).tolist())
        if not len(crops.samples):
            first = crops.bad[0]
            reason = f"{first.reason}; nor can any other of the {len(samples)} images of its batch"
            raise BadImageError(BadImage(first.index, first.identity, reason))
        return crops

    def _finished(self, epoch: int, crops: Crops) -> Batch:
        """The batch, after its photometric part."""
        if not len(crops.samples):
            return self._empty()
        # A copy: this is a piece of the epoch's order, all of which it would keep alive.
        index = torch.tensor(crops.samples, device="cpu")
        label = torch.full_like(index, -1)
        if self._labels is not None:
            label = torch.from_numpy(np.asarray(self._labels)[crops.samples])
        views = self._finished_views(epoch, crops)
        return Batch(tuple(views), self._sent(index), self._sent(label))

    def _finished_views(self, epoch: int, crops: Crops) -> list[Tensor]:
        if self._finish:
            return [view.permute(0, 3, 1, 2) for view in crops.crops]
        views = []
        for number, (view, pixels) in enumerate(zip(self.views.views, crops.crops, strict=True)):
            parameters = draw(view, self.seed, epoch, crops.samples, number)
            rows = torch.from_numpy(parameters.photometric_rows(*pixels.shape[1:3]))
            pixels, rows = self._sent(pixels), self._sent(rows)
            views.append(self._photometric(pixels, rows, self._mean, self._std, self.dtype))
        return views

    def _empty(self) -> Batch:
        views = []
        for view in self.views.views:
            shape = view.shape or tuple(self.source.images.shape[1:3])
            empty = torch.empty(
                0, len(self.views.mean), *shape, dtype=self.dtype, device=self.device
            )
            views.append(empty.to(memory_format=torch.channels_last))
        none = torch.empty(0, dtype=torch.int64, device=self.device)
        return Batch(tuple(views), none, none.clone())

    def _sent(self, tensor: Tensor) -> Tensor:
        """On the loader's device. A copy from pinned memory does not wait for it."""
        if tensor.device.type == self.device.type:
            return tensor
        if self._stream is not None:
            tensor = tensor.pin_memory()
        return tensor.to(self.device, non_blocking=self._stream is not None)

    def _taken_over(self, batch: Batch, done: torch.cuda.Event | None) -> Batch:
        """The batch, for use on the caller's current stream."""
        if done is not None:
            stream = torch.cuda.current_stream(self.device)
            stream.wait_event(done)
            for tensor in (*batch.views, batch.index, batch.label):
                tensor.record_stream(stream)
        return batch

    def _discard(self) -> None:
        """Wait for the batches of an iteration that was not finished."""
        while self._under_way:
            if len(self._under_way.popleft()):
                # Its errors belong to an iteration that was abandoned.
                with contextlib.suppress(RuntimeError):
                    self._renderer.receive()

    def _build_renderer(self, workers: int | None) -> Renderer:
        settings = {"seed": self.seed, "prefetch": self.prefetch}
        if self.chosen == "arrays":
            return ArrayRenderer(self.source, self.views, device=self.device, **settings)
        if self.chosen == "dali":
            threads = cores_of_rank() if workers is None else max(workers, 1)
            device = self.device if self.device.type == "cuda" else "cpu"
            return dali.DaliRenderer(
                self.source,
                self.views,
                self.batch_size,
                threads=threads,
                device=device,
                **settings,
            )
        return ThreadRenderer(
            self.source,
            self.views,
            workers=default_workers() if workers is None else workers,
            timeout=self._timeout,
            pinned=self.device.type == "cuda",
            finish=self._finish,
            **settings,
        )

    @functools.cached_property
    def _identity(self) -> dict[str, Any]:
        """What `IDENTITY` lists."""
        return {
            "seed": self.seed,
            "samples": len(self.source),
            "images": self.source.fingerprint(),
            "views": self.views.fingerprint(),
            "global_batch_size": self.batch_size * self.shard.ranks,
            "drop_last": self.drop_last,
        }

    def state_dict(self) -> dict[str, Any]:
        """The position, in plain values, equal on all ranks: it counts the batches yielded so far,
        not those rendered ahead."""
        return {
            "epoch": self._position.epoch,
            "batch": self._position.batch,
            "ranks": self.shard.ranks,
            "loader": self.chosen,
            "fingerprint": dict(self._identity),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Set the position to that of `state`; the next iteration starts there.

        Raises:
            ValueError: not such a state, or it comes from other images, views, seed, batch size
                over all ranks or `drop_last`; or, in the middle of an epoch, from another number of
                ranks. The message names what differs; the loader stays where it is.
        """
        missing = [name for name in ("epoch", "batch", "ranks", "fingerprint") if name not in state]
        if missing:
            raise ValueError(f"not the state of a loader: it lacks {', '.join(missing)}")
        theirs = state["fingerprint"]
        differing = [
            f"{words}: {theirs.get(name)!r} there, {self._identity[name]!r} here"
            for name, words in IDENTITY.items()
            if theirs.get(name) != self._identity[name]
        ]
        if differing:
            raise ValueError(f"the state belongs to another run ({'; '.join(differing)})")
        position = Position(state["epoch"], state["batch"])
        if position.batch >= len(self):
            raise ValueError(f"batch {position.batch} of an epoch that has {len(self)}")
        if state["ranks"] != self.shard.ranks and position.batch:
            raise ValueError(
                f"the number of ranks changes between epochs only: {state['ranks']} there, "
                f"{self.shard.ranks} here, at batch {position.batch} of epoch {position.epoch}"
            )
        if state.get("loader", self.chosen) != self.chosen:
            LOG.warning(
                "views were rendered by %s and now are by %s: their crops may differ by a level",
                state["loader"],
                self.chosen,
            )
        self._position = position

    def close(self) -> None:
        """End the threads and free their memory. May be called again."""
        self._closed = True
        self._under_way.clear()
        self._renderer.close()

    def __enter__(self) -> ViewLoader:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def check_loading(
    loader: str, workers: int | None, on_bad_image: OnBadImage | BadImages, timeout: float
) -> None:
    """Check arguments of `ViewLoader` that do not depend on the images.

    Raises:
        ValueError: one that it does not.
    """
    _check_name(loader)
    if workers is not None:
        _check_whole(workers=workers)
    if isinstance(timeout, bool) or not isinstance(timeout, (int, float)):
        raise TypeError(f"timeout must be a number of seconds, got {timeout!r}")
    if workers is not None and workers < 0:
        raise ValueError(f"workers must be at least 0, got {workers}")
    if not 0 <= timeout < math.inf:
        raise ValueError(f"timeout must be at least 0 and finite, got {timeout}")
    BadImages.of(on_bad_image)


def _check_whole(**numbers: Any) -> None:
    for name, value in numbers.items():
        if isinstance(value, bool) or not isinstance(value, (int, np.integer)):
            raise TypeError(f"{name} must be a whole number, got {value!r}")


def _check_name(loader: str) -> None:
    if loader not in ("auto", *LOADERS):
        raise ValueError(f"loader must be one of {', '.join(('auto', *LOADERS))}, got {loader!r}")


def choose_loader(
    loader: str, source: Source, views: Views, device: torch.device | str = "cpu"
) -> tuple[str, str]:
    """(loader, reason): one of `LOADERS`, for crops on `device`.

    Raises:
        ValueError: an unknown loader, or one that cannot render this source.
        ImportError: DALI was requested and cannot be used here.
    """
    _check_name(loader)
    device = torch.device(device)
    arrays = isinstance(source, ArraySource)
    if loader == "arrays" and not arrays:
        raise ValueError(
            f"loader='arrays' is for images in memory; {source.name} holds files: use 'auto'"
        )
    if views.reduced_decoding and (arrays or loader == "dali"):
        why = "images in memory are not decoded" if arrays else "DALI decodes whole images"
        raise ValueError(f"reduced_decoding is for files and loader='pil': {why}")
    if loader == "dali":
        problem = dali.why_unusable(device if device.type == "cuda" else "cpu")
        if problem is not None:
            raise ImportError(f"loader='dali' cannot be used here: {problem}")
    if loader != "auto":
        return loader, "requested"
    if arrays:
        return "arrays", "images in memory"
    if device.type != "cuda":
        return "pil", "off the GPU DALI is slower, and Pillow's crops are torchvision's"
    if views.reduced_decoding:
        return "pil", "not dali: it decodes whole images"
    if len(views.mean) != 3:
        return "pil", "not dali: it decodes files to three channels, the views have one"
    problem = dali.why_unusable(device)
    if problem is not None:
        return "pil", f"not dali: {problem}"
    return "dali", "files, decoded and cropped on the GPU"
