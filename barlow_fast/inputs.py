"""Untrusted files: opened and parsed within bounds."""

from __future__ import annotations

import contextlib
import errno
import importlib
import os
import re
import stat
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any, BinaryIO

# Bytes of a YAML file, and nodes of it once every alias stands for a copy: settings and views have
# some hundreds, and a few lines of aliases can stand for billions.
LARGEST_YAML, MOST_NODES = 2**16, 10_000
DEEPEST = 32  # nested nodes


def open_descriptor(path: str | bytes | Path, largest: int | None = None) -> int:
    """A descriptor of a regular file, for reading. Anything else, such as a pipe, which could keep
    a reader waiting forever, is refused without waiting.

    Args:
        path: of the file.
        largest: bytes that it may have; None for any number.

    Raises:
        OSError: it cannot be opened, is not a regular file, or is larger.
    """
    # Opening a pipe waits for its other end unless O_NONBLOCK is set.
    flags = os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0)
    descriptor = os.open(path, flags)
    try:
        # Of what is open now: the name may stand for something else by the time it is opened.
        status = os.fstat(descriptor)
        if stat.S_ISDIR(status.st_mode):
            raise OSError(errno.EISDIR, "is a folder", os.fspath(path))
        if not stat.S_ISREG(status.st_mode):
            raise OSError(errno.EINVAL, "is not a regular file", os.fspath(path))
        if largest is not None and status.st_size > largest:
            words = f"has {status.st_size} bytes, more than the {largest} that it may have"
            raise OSError(errno.EFBIG, words, os.fspath(path))
    except BaseException:
        os.close(descriptor)
        raise
    return descriptor


def open_regular(path: str | bytes | Path, largest: int | None = None) -> BinaryIO:
    """`open_descriptor` as a binary file without a buffer."""
    return os.fdopen(open_descriptor(path, largest), "rb", buffering=0)


@contextlib.contextmanager
def needed_for(purpose: str, extra: str = "train") -> Iterator[None]:
    """For imports of optional libraries.

    Args:
        purpose: what needs them.
        extra: of this package, which brings them.

    Raises:
        ModuleNotFoundError: one is not installed; the message names it and the extra.
    """
    try:
        yield
    except ModuleNotFoundError as error:
        library = str(error.name).partition(".")[0]
        raise ModuleNotFoundError(
            f"{purpose} needs {library}: pip install 'barlow-fast[{extra}]'", name=error.name
        ) from error


def optional_library(name: str, extra: str, purpose: str) -> ModuleType:
    """The module `name`.

    Raises:
        ModuleNotFoundError: see `needed_for`.
    """
    with needed_for(purpose, extra):
        return importlib.import_module(name)


def read_yaml(path: Path) -> Any:
    """The content of a YAML file.

    Raises:
        ValueError: as `parse_yaml`, or not a text in UTF-8.
        OSError: as `open_descriptor`.
    """
    with open_regular(path, LARGEST_YAML) as file:
        content = file.read(LARGEST_YAML)
    try:
        return parse_yaml(content.decode("utf-8"))
    except UnicodeDecodeError as error:
        raise ValueError(f"not a text in UTF-8 ({error})") from error


def parse_yaml(text: str) -> Any:
    """The content of a YAML text: plain containers and values. Numbers may be written as 1e-4,
    which YAML 1.1 takes for text.

    Raises:
        ValueError: not YAML; a key twice in one mapping, of which parsers silently take the last;
            larger than `LARGEST_YAML`, nested too deeply, or with aliases that stand for more than
            `MOST_NODES` nodes.
        ImportError: PyYAML is missing (`pip install barlow-fast[train]`).
    """
    with needed_for("a YAML file or NAME=VALUE"):
        import yaml

    if len(text) > LARGEST_YAML:
        raise ValueError(f"refused as YAML: it has more than {LARGEST_YAML} characters")
    try:
        loader = _loader()(text)
        node = loader.get_single_node()
        if node is None:
            return None
        if _count(node, {}) > MOST_NODES:
            raise ValueError(f"refused as YAML: it stands for more than {MOST_NODES} values")
        return loader.construct_document(node)
    except yaml.YAMLError as error:
        raise ValueError(f"not YAML: {' '.join(str(error).split())}") from error
    except (AttributeError, LookupError, TypeError, ArithmeticError) as error:
        raise ValueError(f"not YAML: a value that does not fit its tag ({error})") from error


def _count(node: Any, known: dict[int, int]) -> int:
    """Nodes below and with this one, each alias counted as a copy."""
    import yaml

    if id(node) not in known:
        if isinstance(node, yaml.ScalarNode):
            return 1
        # Until it is known: of a node that holds itself there is no end.
        known[id(node)] = MOST_NODES + 1
        inside = node.value
        if isinstance(node, yaml.MappingNode):
            inside = [each for pair in node.value for each in pair]
        known[id(node)] = min(1 + sum(_count(each, known) for each in inside), MOST_NODES + 1)
    return known[id(node)]


def _loader() -> type:
    import yaml

    class Loader(yaml.SafeLoader):
        depth = 0

        def compose_node(self, parent: Any, index: Any) -> Any:
            self.depth += 1
            if self.depth > DEEPEST:
                raise ValueError("refused as YAML: it is nested too deeply")
            node = super().compose_node(parent, index)
            self.depth -= 1
            return node

        def construct_mapping(self, node: Any, deep: bool = False) -> dict:
            names = [key.value for key, _ in node.value if isinstance(key.value, str)]
            twice = sorted({name for name in names if names.count(name) > 1})
            if twice:
                raise ValueError(f"{twice[0]}: twice in one mapping{node.start_mark}")
            return super().construct_mapping(node, deep)

    # As YAML 1.2 has numbers.
    Loader.add_implicit_resolver(
        "tag:yaml.org,2002:float",
        re.compile(r"^[-+]?[0-9]+(\.[0-9]*)?[eE][-+]?[0-9]+$"),
        list("-+0123456789"),
    )
    return Loader
