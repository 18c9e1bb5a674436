"""What is done about images that cannot be read."""

from __future__ import annotations

import logging
import threading
import warnings
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal, get_args

from ..terminal import printable

LOG = logging.getLogger("barlow_fast.data")

OnBadImage = Literal["error", "skip"]
POLICIES = get_args(OnBadImage)


@dataclass(frozen=True)
class BadImage:
    """One image that cannot be read."""

    index: int  # its sample number in the source; -1 where there is none
    identity: str  # path, or shard:member, printable
    reason: str  # one line

    def __str__(self) -> str:
        return f"{self.identity}: {self.reason}"


class BadImageError(ValueError):
    """An image that cannot be read; `image` says which and why. Can be pickled."""

    def __init__(self, image: BadImage) -> None:
        super().__init__(image)
        self.image = image

    def __str__(self) -> str:
        return str(self.image)


class BadImages:
    """What is done about bad images, and the record of them.

    Each is reported once, in a warning of the logger `barlow_fast.data`, however many epochs,
    scores and loaders meet it: one record serves a whole run. Memory is bounded: of the first
    `limit` images the whole record is kept, of the others their number.

    Args:
        policy: 'error': the first bad image raises; 'skip': it is recorded, and its sample left
            out.
        limit: how many are kept in `images`.

    Raises:
        ValueError: another policy.
    """

    def __init__(self, policy: OnBadImage = "error", limit: int = 1000) -> None:
        if policy not in POLICIES:
            raise ValueError(f"on_bad_image must be one of {', '.join(POLICIES)}, got {policy!r}")
        self.policy = policy
        self.limit = limit
        self.images: list[BadImage] = []
        self.encounters = 0  # every time that one was met, in every epoch
        self._known: set[str] = set()
        self._full = False

    @classmethod
    def of(cls, given: OnBadImage | BadImages) -> BadImages:
        """A record that is given, or a new one of a policy."""
        return given if isinstance(given, cls) else cls(given)

    def __len__(self) -> int:
        return len(self.images)

    def add(self, image: BadImage) -> None:
        """Records a bad image, or raises `BadImageError` under the policy 'error'."""
        if self.policy == "error":
            raise BadImageError(image)
        self.encounters += 1
        if image.identity in self._known or self._full:
            return
        if len(self.images) == self.limit:
            self._full = True
            LOG.warning("more than %d bad images: further ones are not listed", self.limit)
            return
        self._keep(image)
        LOG.warning("left out: %s", image)

    def learn(self, images: Iterable[BadImage]) -> None:
        """Add images that another process has reported."""
        for image in images:
            if image.identity not in self._known and len(self.images) < self.limit:
                self._keep(image)

    def _keep(self, image: BadImage) -> None:
        self._known.add(image.identity)
        self.images.append(image)


class Unreadable(ValueError):
    """The reason why an image cannot be read, without the image's identity."""


_reading = threading.local()  # identity: what this thread reads
_show_warning = warnings.showwarning


def _name_warnings() -> None:
    """Log warnings of a thread that reads an image with the image's name, which Pillow's warnings
    lack."""
    global _show_warning
    # Checked every time: `warnings.catch_warnings` restores the function before.
    if warnings.showwarning is not _named_warning:
        _show_warning, warnings.showwarning = warnings.showwarning, _named_warning


def _named_warning(message: Warning | str, *rest: object, **more: object) -> None:
    identity = getattr(_reading, "identity", None)
    if identity is None:
        _show_warning(message, *rest, **more)
    else:
        LOG.warning("%s: %s", identity, printable(" ".join(str(message).split())))


class guard:
    """Turn an error inside the block into a `BadImageError`.

    Decoders of damaged bytes raise OSError, SyntaxError, ValueError, struct.error, IndexError,
    EOFError, zlib.error and more. Only MemoryError passes: sizes are checked first, so the machine
    is out of memory.
    """

    def __init__(self, identity: str, index: int) -> None:
        self.identity, self.index = identity, index

    def __enter__(self) -> None:
        self.outer = getattr(_reading, "identity", None)
        _reading.identity = self.identity
        _name_warnings()

    def __exit__(self, kind: type | None, error: BaseException | None, trace: object) -> None:
        _reading.identity = self.outer
        if not isinstance(error, Exception) or isinstance(
            error, (BadImageError, MemoryError, ModuleNotFoundError)
        ):
            return
        raise BadImageError(BadImage(self.index, self.identity, _reason(error))) from error


def _reason(error: Exception) -> str:
    """One line of at most 200 characters."""
    if isinstance(error, Unreadable):
        text = str(error)
    elif isinstance(error, OSError) and error.strerror:
        text = error.strerror
    else:
        text = f"{error}" or type(error).__name__
    return printable(" ".join(text.split()))[:200]
