"""What is done about images that cannot be read, and about suspect ones, which are decoded with a
warning."""

from __future__ import annotations

import logging
import threading
import warnings
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Literal, get_args

from ..terminal import printable

LOG = logging.getLogger("barlow_fast.data")

OnBadImage = Literal["error", "skip", "strict"]
POLICIES = get_args(OnBadImage)


@dataclass(frozen=True)
class BadImage:
    """One image that cannot be read, or is suspect."""

    index: int  # its sample number in the source; -1 where there is none
    identity: str  # path, or shard:member, printable
    reason: str  # one line
    suspect: bool = False  # whether it was decoded, with `reason` as the decoder's warning

    def __str__(self) -> str:
        return f"{self.identity}: {self.reason}"


class BadImageError(ValueError):
    """An image that cannot be read; `image` says which and why. Can be pickled."""

    def __init__(self, image: BadImage) -> None:
        super().__init__(image)
        self.image = image

    def __str__(self) -> str:
        return str(self.image)


class Record:
    """Images that are reported once each, in a warning of the logger `barlow_fast.data`.

    Args:
        report: how the report of an image begins.
        kind: what the images are called in the plural.
        limit: how many are kept in `images`.
    """

    def __init__(self, report: str, kind: str, limit: int) -> None:
        self.images: list[BadImage] = []
        self.encounters = 0  # every time that one was met, in every epoch
        self._report, self._kind, self._limit = report, kind, limit
        self._known: set[str] = set()
        self._full = False
        self._shared = 0

    def add(self, image: BadImage) -> None:
        """Report an image unless that has been done."""
        self.encounters += 1
        if image.identity in self._known or self._full:
            return
        if len(self.images) == self._limit:
            self._full = True
            LOG.warning("more than %d %s: further ones are not listed", self._limit, self._kind)
            return
        self._keep(image)
        LOG.warning("%s: %s", self._report, image)

    def unshared(self) -> list[BadImage]:
        """Those found since `learn` was called last."""
        return self.images[self._shared :]

    def learn(self, images: Iterable[BadImage]) -> None:
        """Add images that another process has reported."""
        for image in images:
            if image.identity not in self._known and len(self.images) < self._limit:
                self._keep(image)
        self._shared = len(self.images)

    def _keep(self, image: BadImage) -> None:
        self._known.add(image.identity)
        self.images.append(image)


class BadImages:
    """What is done about bad and suspect images, and the record of them.

    Each is reported once, in a warning of the logger `barlow_fast.data`, however many epochs,
    scores and loaders meet it: one record serves a whole run. Memory is bounded: of the first
    `limit` images of either kind the whole record is kept, of the others their number.

    Args:
        policy: 'error': the first bad image raises; 'skip': bad images are recorded, and their
            samples left out; 'strict': suspect images are left out as well. Under the other two
            they are recorded and used.
        limit: how many of either kind are kept.

    Attributes:
        images: the bad images.
        suspects: the suspect images.

    Raises:
        ValueError: another policy.
    """

    def __init__(self, policy: OnBadImage = "error", limit: int = 1000) -> None:
        if policy not in POLICIES:
            raise ValueError(f"on_bad_image must be one of {', '.join(POLICIES)}, got {policy!r}")
        self.policy = policy
        self.limit = limit
        self._bad = Record("left out", "bad images", limit)
        used = "left out, since suspect" if policy == "strict" else "suspect"
        self._suspect = Record(used, "suspect images", limit)
        self.images, self.suspects = self._bad.images, self._suspect.images

    @classmethod
    def of(cls, given: OnBadImage | BadImages) -> BadImages:
        """A record that is given, or a new one of a policy."""
        return given if isinstance(given, cls) else cls(given)

    def __len__(self) -> int:
        return len(self.images)

    @property
    def encounters(self) -> int:
        """How many times a sample was left out, in every epoch."""
        left_out = self._suspect.encounters if self.policy == "strict" else 0
        return self._bad.encounters + left_out

    def add(self, image: BadImage) -> bool:
        """Records an image. Whether its sample is left out.

        Raises:
            BadImageError: it is bad, and the policy is 'error'.
        """
        if image.suspect:
            self._suspect.add(image)
            return self.policy == "strict"
        if self.policy == "error":
            raise BadImageError(image)
        self._bad.add(image)
        return True

    def describe_suspects(self) -> str:
        """The number of suspect images and what is done about them."""
        used = "left out" if self.policy == "strict" else "used"
        return f"{len(self.suspects)} images that were decoded with a warning ({used})"

    def share(self, gather: Callable[[list[BadImage]], list[list[BadImage]]]) -> None:
        """Learn what other processes have found since this was called last. They need not report
        it again. Called by all of them.

        Args:
            gather: returns what each process passes.
        """
        found = [
            image
            for images in gather(self._bad.unshared() + self._suspect.unshared())
            for image in images
        ]
        self._bad.learn(image for image in found if not image.suspect)
        self._suspect.learn(image for image in found if image.suspect)


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
