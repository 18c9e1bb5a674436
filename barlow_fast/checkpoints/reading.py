"""Untrusted files of weights: read without running code in them or trusting declared sizes."""

from __future__ import annotations

import argparse
import errno
import hashlib
import os
import pickle
import warnings
import zipfile
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, BinaryIO

import torch
from torch import Tensor

from ..files import check_output
from ..inputs import open_descriptor, optional_library
from . import archive

# The entry of a safetensors file's metadata that ours carry.
DIGEST = "barlow_fast_sha256"
SAFETENSORS_HEADER_LIMIT = 100_000_000
SUFFIXES = (".pt", ".pth", ".ckpt", ".safetensors")
# Files that are taken for weights, by their first bytes.
SIGNATURES = {
    b"version https": "a pointer of Git LFS, not the file itself: fetch it with `git lfs pull`",
    b"<": "a web page or XML, as after a download that failed",
    b"\x08": "a protobuf, such as an ONNX model, which holds a network and no checkpoint: give the "
    "file that it was exported from",
    b"\x89HDF": "an HDF5 file, as Keras writes",
    b"\x93NUMPY": "an array of NumPy",
    b"\x1f\x8b": "compressed by gzip: unpack it first",
    b"\xfd7zXZ": "compressed by xz: unpack it first",
    b"BZh": "compressed by bzip2: unpack it first",
    b"\x28\xb5\x2f\xfd": "compressed by zstd: unpack it first",
}


def read_checkpoint(path: Path | str) -> tuple[dict[str, Any], dict[str, str] | None]:
    """The content of a torch or safetensors file, with tensors on the CPU, and a safetensors
    file's metadata (None: a torch file).

    Tensors, plain values, plain containers and `argparse.Namespace` are all that is read. A digest
    that the file carries is verified.

    Raises:
        FileNotFoundError: no such file.
        ValueError: damaged, not a file of weights, with objects of other classes in it, or
            unpacking to much more than it weighs.
        ModuleNotFoundError: a safetensors file, and safetensors is not installed.
    """
    path = Path(path)
    try:
        # Opened once: what is checked is what is read. A pipe would keep a plain open waiting.
        stream = os.fdopen(open_descriptor(path), "rb")
    except FileNotFoundError:
        raise FileNotFoundError(f"no checkpoint at {path}") from None
    except OSError as error:
        if error.errno in (errno.EISDIR, errno.EINVAL):
            raise ValueError(f"{path} is not a file{_inside(path)}") from None
        raise ValueError(f"{path} is not a readable checkpoint: {error.strerror}") from error
    with stream:
        start = stream.read(16)
        stream.seek(0)
        if _is_safetensors(start):
            return _read_safetensors(path)
        return _read_torch(stream, start, path), None


def _inside(folder: Path) -> str:
    """What to give instead of a folder, such as that of a run."""
    if not folder.is_dir():
        return ""
    found = [each for each in folder.iterdir() if each.suffix.lower() in SUFFIXES]
    if not found:
        return ": it is a folder, with no checkpoint in it"
    newest = max(found, key=lambda each: each.stat().st_mtime_ns)
    return f": give a checkpoint in that folder, such as {newest}"


def _kind(start: bytes) -> str:
    """What a file is that torch has not written, by its first bytes."""
    if not start:
        return "it is empty"
    for signature, name in SIGNATURES.items():
        if start.startswith(signature):
            return f"it is {name}"
    if all(c.isprintable() or c.isspace() for c in start.decode("utf-8", "ignore")):
        return "it is a text"
    return f"it begins with {start[:4].hex(' ')}, as neither torch nor safetensors writes"


def _read_torch(stream: BinaryIO, start: bytes, path: Path) -> dict[str, Any]:
    carries = False
    try:
        if not start.startswith((archive.START, pickle.PROTO)) and not zipfile.is_zipfile(stream):
            raise ValueError(_kind(start))
        if start.startswith(archive.START):
            carries = archive.check(stream)
        elif zipfile.is_zipfile(stream):
            raise ValueError("it does not begin with a record")
    except ValueError as error:
        raise ValueError(f"{path} is not a readable checkpoint: {error}") from error
    stream.seek(0)
    try:
        # A Namespace takes attributes and does nothing: the settings that trainers store.
        # Warnings are of files that are damaged, or that others read in any case.
        with torch.serialization.safe_globals([argparse.Namespace]), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            content = torch.load(stream, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise ValueError(_refusal(path)) from error
    except Exception as error:
        # Damage shows as whatever the reader stumbles over.
        raise ValueError(f"{path} is not a readable checkpoint: {_first_line(error)}") from error
    if not isinstance(content, Mapping):
        raise ValueError(
            f"{path} holds a {type(content).__name__}, not a dict of weights or a checkpoint"
        )
    version = content.get("version") if content.get("format") == archive.PRETRAIN else None
    if version == archive.DIGEST_VERSION and not carries:
        raise ValueError(f"{path} is not a readable checkpoint: the digest at its end is damaged")
    return dict(content)


def check_export(path: Path | str, inputs: Iterable[Path | str] = (), option: str = "") -> None:
    """`check_output` of weights that are written for others: they take the place of no input and of
    no training checkpoint.

    Raises:
        ValueError: see there; or a checkpoint.
    """
    check_output(path, inputs=inputs, option=option)
    if os.path.exists(path) and _may_be_checkpoint(Path(path)):
        raise ValueError(
            f"{option} {path}".lstrip() + " is there already and holds more than weights by name: "
            "a training checkpoint, whole or damaged, is not replaced by an export. Give another "
            "name"
        )


def _may_be_checkpoint(path: Path) -> bool:
    """Whether a file can be a training checkpoint: one of torch that is not plain weights by name,
    or of which this cannot be seen."""
    with open(path, "rb") as file:
        start = file.read(9)
    if _is_safetensors(start) or not start.startswith((archive.START, pickle.PROTO)):
        return False
    try:
        content, _ = read_checkpoint(path)
    except ValueError:
        return True
    return not all(isinstance(value, Tensor) for value in content.values())


def check_tensors(state: Mapping[str, Any], path: Path | str) -> dict[str, Tensor]:
    """`state`, if it is names and tensors of numbers that the file holds in full.

    Raises:
        ValueError: something else, or tensors that claim more elements than there are.
    """
    claimed = 0
    for key, value in state.items():
        if not isinstance(key, str) or not isinstance(value, Tensor):
            raise ValueError(f"{path}: {key!r} is a {type(value).__name__}, not a tensor")
        if value.layout != torch.strided or value.is_quantized or value.device.type != "cpu":
            raise ValueError(f"{path}: {key!r} is not a dense tensor with data")
        size = value.numel() * value.element_size()
        claimed += size
        # An expanded tensor is large without weight.
        if size > value.untyped_storage().nbytes():
            raise ValueError(
                f"{path}: {key!r} claims {size} bytes and has {value.untyped_storage().nbytes()}"
            )
    weight = Path(path).stat().st_size
    if claimed > archive.UNPACKED_LIMIT * weight + 2**20:
        raise ValueError(f"{path} claims {claimed} bytes of weights and has {weight}")
    return dict(state)


def _is_safetensors(start: bytes) -> bool:
    length = int.from_bytes(start[:8], "little")
    return start[8:9] == b"{" and length < SAFETENSORS_HEADER_LIMIT


def _read_safetensors(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    library = optional_library("safetensors", "export", "a .safetensors file")
    try:
        with library.safe_open(path, framework="pt", device="cpu") as opened:
            metadata = dict(opened.metadata() or {})
            # Sorted by the file: names are all that counts here.
            state = {key: opened.get_tensor(key) for key in opened.keys()}  # noqa: SIM118
    except Exception as error:
        raise ValueError(f"{path} is not a readable checkpoint: {_first_line(error)}") from error
    # Others have no such entry.
    if DIGEST in metadata and metadata[DIGEST] != weights_digest(state, metadata):
        raise ValueError(
            f"{path} is not a readable checkpoint: its SHA-256 is not the one that it carries"
        )
    return state, metadata


def weights_digest(state: Mapping[str, Tensor], metadata: Mapping[str, str]) -> str:
    """SHA-256 of tensors with their names, types and shapes, and of the metadata but this."""
    entries = sorted((key, value) for key, value in metadata.items() if key != DIGEST)
    digest = hashlib.sha256(repr(entries).encode("utf-8", "surrogatepass"))
    for name in sorted(state):
        value = state[name]
        digest.update(repr((name, str(value.dtype), tuple(value.shape))).encode())
        digest.update(value.contiguous().reshape(-1).view(torch.uint8).numpy())
    return digest.hexdigest()


def _refusal(path: Path) -> str:
    try:
        # Looks at the pickle without running it.
        found = torch.serialization.get_unsafe_globals_in_checkpoint(path)
    except Exception:
        found = []
    named = f" ({', '.join(sorted(found)[:5])})" if found else ""
    # torch's own text advises to turn the protection off.
    return (
        f"{path} is refused: it holds objects whose loading could run code{named}. Where its "
        "source is trusted, load it there and save its tensors alone"
    )


def _first_line(error: Exception) -> str:
    return str(error).split("\n", 1)[0] or type(error).__name__
