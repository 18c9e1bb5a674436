"""Search for images of a source that cannot be read or are suspect (`barlow-fast data check`)."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from ..files import check_output, whole_file
from .faults import BadImage, BadImageError
from .parallel import in_order
from .sources import Source

# How every report begins.
REPORT_START = b'{"source": '


@dataclass(frozen=True)
class Attempt:
    """Decodes one image as training would."""

    source: Source

    def __call__(self, index: int) -> BadImage | None:
        try:
            return self.source.pixels(index).suspect(index, self.source.identity(index))
        except BadImageError as error:
            return error.image


def bad_images(
    source: Source,
    workers: int | None = None,
    progress: Callable[[int], None] | None = None,
) -> Iterator[BadImage]:
    """The images that cannot be read or are suspect, in the source's order, each decoded as a
    whole.

    Args:
        source: of the images.
        workers: threads, as for `in_order`.
        progress: called after each image with the number of those done.

    Raises:
        RuntimeError: storage does not answer.
    """
    for done, bad in enumerate(in_order(source, Attempt(source), workers), 1):
        if progress is not None:
            progress(done)
        if bad is not None:
            yield bad


def write_report(path: Path, source: Source, found: Iterable[BadImage]) -> Iterator[BadImage]:
    """Yield bad images while writing them as JSON: {"source", "images", "bad": [{"index",
    "identity", "reason", "suspect"}]}. The file appears when the last one has passed, and memory
    does not grow with their number. Where it cannot be written, that is raised after the last one.

    Raises:
        OSError: it cannot be written.
        ValueError: see `check_output`.
    """
    check_output(path, REPORT_START)
    found = iter(found)
    try:
        with whole_file(path) as partial, open(partial, "w", encoding="utf-8") as file:
            head = {"source": source.name, "images": len(source)}
            file.write(json.dumps(head)[:-1] + ', "bad": [')
            separator = "\n"
            for bad in found:
                yield bad
                file.write(separator + json.dumps(vars(bad)))
                separator = ",\n"
            file.write("]}\n")
    except OSError:
        yield from found
        raise
