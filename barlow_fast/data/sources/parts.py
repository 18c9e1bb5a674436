"""The parts of a folder of images: what is trained on, and what is held out."""

from __future__ import annotations

import contextlib
import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from ...terminal import printable
from .folder import EXTENSIONS, is_folder

TRAINING = ("train", "training")
# In the order in which one is taken: where there are both, the labels of `test` are often withheld
# or kept for the last comparison.
HELD_OUT = ("val", "valid", "validation", "test", "testing")

_PART = re.compile(
    rf"(?P<prefix>.*[ ._-])?(?P<part>{'|'.join(TRAINING + HELD_OUT)})"
    r"([ ._-]?(set|split|data|images|imgs))?[ ._-]?\d*",
    re.IGNORECASE,
)
_WORDS = re.compile(rf"(?<![a-z])({'|'.join(TRAINING + HELD_OUT)})(?![a-z])", re.IGNORECASE)


@dataclass(frozen=True)
class Parts:
    """What a folder holds."""

    train: Path  # the folder itself where it is not divided
    held_out: Path | None = None  # None: there is none
    others: tuple[Path, ...] = ()  # folders with images that belong to neither


def find_parts(folder: str | Path) -> Parts:
    """The folders of training images and of held-out images that a folder is divided into.

    They are its sub-folders `train` or `training`, and the first there is of `HELD_OUT`; in any
    case, also as `train2017`, `test_set` or, both with the same beginning, `photos_train` and
    `photos_val`. A folder whose images are all in one sub-folder is looked for there. A folder
    without such sub-folders is one part.

    Args:
        folder: must exist.

    Raises:
        ValueError: a training folder beside others that may be classes, held-out images without
            training images, several training folders, a division inside of every class, or shards
            of several parts in one folder.
        OSError: the folder cannot be listed.
    """
    folder = Path(folder)
    _check_shards(folder)
    holding = [Path(path) for path in _folders(folder) if _holds_images(path)]
    beside = any(map(_is_image, _files(folder)))
    named = _named(holding)
    train = [path for path in holding if named.get(path) in TRAINING]
    held_out = [path for path in holding if named.get(path) in HELD_OUT]
    held_out.sort(key=lambda path: HELD_OUT.index(named[path]))
    if not named:
        if len(holding) == 1 and not beside:
            inside = find_parts(holding[0])
            return inside if inside.train != holding[0] else Parts(folder)
        _check_classes(folder, holding)
        return Parts(folder)
    if not train:
        raise ValueError(
            f"{printable(str(folder))} holds {_listed(held_out)} and none to learn from: give the "
            f"folder of the training images{_or_rename(held_out, holding)}"
        )
    if len(train) > 1:
        raise ValueError(
            f"{printable(str(folder))} holds {_listed(train)}: give the one to train on"
        )
    others = tuple(path for path in holding if path not in (*train, *held_out[:1]))
    if held_out or not (others or beside):
        return Parts(train[0], held_out[0] if held_out else None, others)
    siblings = _listed(others) if others else "images outside of it"
    raise ValueError(
        f"{printable(str(folder))} holds train/ beside {siblings}, which may be classes or another "
        f"part: give {printable(str(train[0]))} to train on it{_or_rename(train, holding)}"
    )


def _named(folders: list[Path]) -> dict[Path, str]:
    """The words for parts in the folders' names, less those that are words of a longer name
    without a counterpart, such as `bullet train`."""
    found = {path: match for path in folders if (match := _PART.fullmatch(path.name))}
    words = {path: match["part"].lower() for path, match in found.items()}

    def has_counterpart(path: Path) -> bool:
        return any(
            found[other]["prefix"] == found[path]["prefix"]
            and (words[other] in TRAINING) != (words[path] in TRAINING)
            for other in found
        )

    return {
        path: word
        for path, word in words.items()
        if not found[path]["prefix"] or has_counterpart(path)
    }


def _check_shards(folder: Path) -> None:
    """Refuses a folder of shards of which some are for training and others held out."""
    shards = sorted(name for name in _files(folder) if name.lower().endswith(".tar"))
    words = {name: {word.lower() for word in _WORDS.findall(name)} for name in shards}
    train = [name for name in shards if words[name] & set(TRAINING)]
    held_out = [name for name in shards if words[name] & set(HELD_OUT)]
    if train and held_out:
        start = train[0][: _WORDS.search(train[0]).end()]
        raise ValueError(
            f"{printable(str(folder))} holds shards of several parts, such as "
            f"{printable(train[0])} and {printable(held_out[0])}: give those of one, "
            f"'{printable(str(folder / start))}*.tar'"
        )


def _check_classes(folder: Path, classes: list[Path]) -> None:
    """Refuses a folder whose classes are divided, each by itself."""
    for path in classes:
        # The names alone, before a class of many files is listed.
        if not any((path / word).is_dir() or (path / word.title()).is_dir() for word in TRAINING):
            continue
        inner = list(_named([Path(each) for each in _folders(path)]))
        if len(inner) > 1:
            raise ValueError(
                f"{printable(str(folder))} holds parts inside of its folders, such as "
                f"{_listed(inner)} in {printable(path.name)}/: give a folder of training images "
                "alone"
            )


def _listed(folders: list[Path] | tuple[Path, ...]) -> str:
    shown = [f"{printable(path.name)}/" for path in folders[:3]]
    return ", ".join(shown) + (f" and {len(folders) - 3} more" if len(folders) > 3 else "")


def _or_rename(parts: list[Path], holding: list[Path]) -> str:
    if len(holding) == len(parts):
        return ""
    return f"; if {printable(parts[0].name)}/ is a class, rename it"


def _entries(folder: str | Path) -> Iterator[os.DirEntry[str]]:
    with os.scandir(folder) as entries:
        yield from (entry for entry in entries if not entry.name.startswith("."))


def _folders(folder: str | Path) -> list[str]:
    return sorted(entry.path for entry in _entries(folder) if is_folder(entry))


def _files(folder: Path) -> Iterator[str]:
    return (entry.name for entry in _entries(folder) if not is_folder(entry))


def _is_image(name: str) -> bool:
    return name.lower().endswith((*EXTENSIONS, ".tar"))


def _holds_images(folder: str | Path) -> bool:
    """Whether there is one below a folder; looked for no further than the first."""
    waiting, seen = [str(folder)], set()
    while waiting:
        current = waiting.pop()
        # A link may lead back.
        real = os.path.realpath(current)
        if real in seen:
            continue
        seen.add(real)
        # What cannot be listed is an error of the scan, which comes next.
        with contextlib.suppress(OSError):
            for entry in _entries(current):
                if is_folder(entry):
                    waiting.append(entry.path)
                elif _is_image(entry.name):
                    return True
    return False
