"""The runs that are compared: each yields, step after step, how many images it learned from.

All train the same network (`build_network` with the same settings) in the same precision and memory
format, with the same optimizer at the same batch size. What differs is what feeds it, the loss, and
the loop around them. A run is opened in a process of its own (`bench.views.turns`).
"""

from __future__ import annotations

import contextlib
import functools
import itertools
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from barlow_fast.data import ImageDataset, load
from barlow_fast.data.datasets import SYSTEM_FASHION_MNIST
from barlow_fast.data.parallel import cores_of_rank
from barlow_fast.data.sources import FolderSource
from barlow_fast.models import BarlowTwinsModel
from barlow_fast.training import PretrainConfig, Trainer
from barlow_fast.training.clock import StepClock
from barlow_fast.training.estimate import resolved_precision
from barlow_fast.training.feeding import named_views
from barlow_fast.training.network import build_network
from barlow_fast.training.optimizers import build_optimizer
from bench import devices
from bench.devices import Device
from bench.peers import discover
from bench.peers import official as official_peer
from bench.training.cases import LIGHTLY, LIMIT, OURS, Case
from bench.views import agreement, images
from bench.views.agreement import DisagreementError
from bench.views.turns import Feed, Figures

# Where data sets are that need no download.
INSTALLED = {"fashion-mnist": SYSTEM_FASHION_MNIST}
READY = 4  # batches on the device that the limit takes in turns
CLOSE = {torch.float32: 1e-3, torch.bfloat16: 0.1}  # of losses; the second rounds to 8 bits

Loss = Callable[[Tensor, Tensor], Tensor]


def _feed(step: Callable[[], int], clock: StepClock, device: Device) -> Feed:
    """The steps of one run, without an end; figures are shares of the time of the steps, and what
    has no clock of its own counts as forward."""

    def report() -> Figures:
        seconds = clock.read()
        whole = sum(seconds.values())
        shares = {"data_wait_share": seconds["data"] / whole} if whole else {}
        return shares | ({"loss_share": seconds["loss"] / whole} if seconds["loss"] else {})

    return Feed(iter(step, None), device.synchronize, report, device.release)


def open_run(
    peer: str, case: Case, device: str, folder: Path | None
) -> AbstractContextManager[Iterator[int]]:
    """Images per step, without an end. What runs in the background ends with the context.

    Args:
        peer: a name of `cases.PEERS`.
        case: what to train.
        device: 'cpu' or 'cuda'.
        folder: of the files, for a case of files.

    Raises:
        DisagreementError: with the first step, where loss or views are not what they should be.
    """
    chosen = devices.choose(device)
    if peer in (OURS, LIMIT):
        return ours(case, chosen, folder, ready=peer == LIMIT)
    return elsewhere(peer, case, chosen, folder)


def dataset_of(case: Case) -> ImageDataset:
    """The data set of a case where it is installed, else random pixels of its shape."""
    folder = INSTALLED.get(case.dataset)
    if folder is not None and folder.is_dir():
        with contextlib.suppress(OSError, ValueError):
            return load(case.dataset, folder)
    channels = len(named_views(case.views).mean)
    pixels = torch.from_numpy(images.pixels(case.side, channels)).permute(0, 3, 1, 2)
    return ImageDataset("random pixels", "random numbers", pixels, None, pixels[:1], None, 1)


@contextlib.contextmanager
def ours(case: Case, device: Device, folder: Path | None, ready: bool) -> Iterator[Iterator[int]]:
    """Our trainer; with `ready`, on a few batches of views that stay on the device."""
    config = case.config()
    data = FolderSource(folder) if case.files else dataset_of(case)
    with Trainer(config, data, device.torch) as trainer:
        first = trainer.next_batch()
        agreement.check(trainer.loader, first)
        _check_loss(trainer.criterion, trainer.model, first.views, trainer.autocast)
        if ready:
            kept = [first, *(trainer.next_batch() for _ in range(READY - 1))]
            trainer.next_batch = functools.partial(next, itertools.cycle(kept))
            trainer.loader.close()

        def step() -> int:
            trainer.train_step()
            return config.batch_size

        # Our own clock: the trainer's records are those of whole epochs.
        yield _feed(step, trainer.clock, device)


@contextlib.contextmanager
def elsewhere(
    peer: str, case: Case, device: Device, folder: Path | None
) -> Iterator[Iterator[int]]:
    """torchvision's transforms in a DataLoader, and a loop as short as it can be: the official
    loss and recipe, or lightly's."""
    config, channels = case.config(), len(named_views(case.views).mean)
    build = discover()[LIGHTLY].build if peer == LIGHTLY else official_peer.build
    with device.torch:
        criterion = build(config.batch_size, config.projector[-1], torch.float32)
    loop = ShortLoop(config, channels, case.side, device.torch, criterion)
    clock = StepClock(device.torch)
    batches = _batches(peer, case, device, folder)
    started = False

    def step() -> int:
        nonlocal started
        clock.start()
        pair = loop.moved(next(batches))
        clock.mark("data")
        if not started:
            _check_loss(criterion, loop.model, pair, loop.autocast)
            started = True
        loop.step(pair)
        clock.mark("forward")
        return len(pair[0])

    yield _feed(step, clock, device)


class ShortLoop:
    """Training in a loop as short as it can be: `config`'s network for views of `side` pixels, its
    optimizer and precision, and the loss `criterion`."""

    def __init__(
        self,
        config: PretrainConfig,
        channels: int,
        side: int,
        device: torch.device,
        criterion: Loss,
    ) -> None:
        self._criterion, self._device = criterion, device
        self._precision = resolved_precision(config, device)
        self._format = {"memory_format": torch.channels_last}
        self.model = build_network(config, channels, [side]).to(device, **self._format)
        self.optimizer = build_optimizer(self.model, config)

    def moved(self, views: Sequence[Tensor]) -> tuple[Tensor, ...]:
        """Views on the device, in the memory format of the network."""
        return tuple(view.to(self._device, non_blocking=True, **self._format) for view in views)

    def autocast(self) -> AbstractContextManager:
        """The context of a forward pass."""
        if self._precision == torch.float32:
            return contextlib.nullcontext()
        return torch.autocast(self._device.type, self._precision)

    def step(self, pair: Sequence[Tensor]) -> Tensor:
        """One step; the loss."""
        self.optimizer.zero_grad(set_to_none=True)
        with self.autocast():
            loss = self._criterion(*self.model(*pair))
        loss.backward()
        self.optimizer.step()
        return loss.detach()


def workers(device: Device) -> int:
    """Processes of a DataLoader: all cores feed a GPU."""
    return device.loader_workers or cores_of_rank()


def _batches(peer: str, case: Case, device: Device, folder: Path | None) -> Iterator[list[Tensor]]:
    """Epoch after epoch of two views."""
    from bench.views import recipes

    given = folder
    if not case.files:
        pixels = dataset_of(case).train_images.permute(0, 2, 3, 1)
        given = np.ascontiguousarray(pixels.numpy())
    batch, pinned = case.config().batch_size, device.pins_memory
    options = peer, named_views(case.views), case.side, given, batch, workers(device)
    return recipes.batches(*options, pin_memory=pinned)


def _check_loss(
    criterion: Loss,
    model: BarlowTwinsModel,
    pair: tuple[Tensor, ...],
    autocast: Callable[[], AbstractContextManager],
) -> None:
    """The loss of the first embeddings, against the same in float64."""
    kept = {name: value.clone() for name, value in model.state_dict().items()}
    with torch.no_grad(), autocast():
        z_a, z_b = model(*pair)
        found = float(criterion(z_a, z_b))
    model.load_state_dict(kept)  # running statistics have not seen it
    with torch.no_grad(), z_a.device:
        exact = official_peer.build(*z_a.shape, torch.float64)(z_a.double(), z_b.double())
    # Written so that NaN is a problem.
    if not abs(found - float(exact)) <= CLOSE.get(z_a.dtype, 1e-3) * abs(float(exact)):
        raise DisagreementError(f"the loss is {found:.6g}, should be {float(exact):.6g}")
