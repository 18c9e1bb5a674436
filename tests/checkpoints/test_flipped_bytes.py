"""One flipped bit anywhere in a checkpoint: the same weights or an error, never others."""

from __future__ import annotations

import io
import struct
import zipfile
from collections.abc import Callable, Iterable
from pathlib import Path

import pytest
import torch

from barlow_fast.checkpoints.reading import read_checkpoint
from barlow_fast.training import load_checkpoint, save_checkpoint

Read = Callable[[Path], dict]


def weights() -> dict[str, torch.Tensor]:
    return {"a": torch.arange(1.0, 33.0), "b": torch.arange(64, dtype=torch.int16)}


def ours(path: Path) -> Read:
    save_checkpoint(path, {"model": weights(), "step": 3})
    return load_checkpoint


def others(path: Path) -> Read:
    torch.save({"model": weights(), "step": 3}, path)
    return lambda path: read_checkpoint(path)[0]


def packed_again(path: Path) -> Read:
    """As by a program other than torch: without sizes that follow, and with attributes."""
    stream = io.BytesIO()
    torch.save({"model": weights(), "step": 3}, stream)
    with zipfile.ZipFile(stream) as source, zipfile.ZipFile(path, "w") as target:
        for entry in source.infolist():
            target.writestr(entry.filename, source.read(entry))
    return lambda path: read_checkpoint(path)[0]


KINDS = {"ours": ours, "others": others, "packed again": packed_again}


def headers(content: bytes) -> list[int]:
    """Positions of the directory's bytes and of those before each record."""
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        starts = [entry.header_offset for entry in archive.infolist()]
        found = set(range(archive.start_dir, len(content)))
    for start in starts:
        name, extra = struct.unpack("<HH", content[start + 26 : start + 30])
        found.update(range(start, start + 30 + name + extra))
    return sorted(found)


def accepted(path: Path, read: Read, content: bytes, flips: Iterable[tuple[int, int]]) -> int:
    """How many files with one byte changed are read; what they hold must be as it was."""
    count = 0
    for position, bits in flips:
        damaged = bytearray(content)
        damaged[position] ^= bits
        path.write_bytes(damaged)
        # What torch does not fill shows: memory of these sizes was last used for other numbers.
        for tensor in weights().values():
            tensor.fill_(-7)
        line = ""
        try:
            state = read(path)
        except ValueError as error:
            line = str(error)
        if line:
            assert str(path) in line
            assert "\n" not in line
            continue
        count += 1
        assert state["step"] == 3, (position, bits)
        for name, expected in weights().items():
            assert torch.equal(state["model"][name], expected), (position, bits, name)
    return count


@pytest.mark.parametrize("kind", KINDS)
def test_every_byte_of_the_directory(tmp_path: Path, kind: str):
    path = tmp_path / "checkpoint.pt"
    read = KINDS[kind](path)
    content = path.read_bytes()
    flips = [(position, bits) for position in headers(content) for bits in (0x10, 0xFF)]
    assert len(flips) > 1000
    count = accepted(path, read, content, flips)
    # Times, versions and padding matter to nobody, but to a digest.
    assert (count == 0) == (kind == "ours")


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_every_bit(tmp_path: Path, kind: str):
    path = tmp_path / "checkpoint.pt"
    read = KINDS[kind](path)
    content = path.read_bytes()
    flips = [(position, 1 << bit) for position in range(len(content)) for bit in range(8)]
    count = accepted(path, read, content, flips)
    assert (count == 0) == (kind == "ours")


def test_a_record_that_is_marked_as_a_folder_is_named(tmp_path: Path):
    """torch then reads nothing, and the tensor holds whatever memory held."""
    path = tmp_path / "checkpoint.pt"
    read = others(path)
    content = bytearray(path.read_bytes())
    at = content.rindex(b"archive/data/0" if b"archive/data/0" in content else b"data/0")
    entry = content.rindex(b"PK\x01\x02", 0, at)
    content[entry + 38] ^= 0x10
    path.write_bytes(content)
    with pytest.raises(ValueError, match=r"data/0 is marked as a folder"):
        read(path)


def test_bytes_after_and_before_are_no_part_of_it(tmp_path: Path):
    path = tmp_path / "checkpoint.pt"
    read = ours(path)
    content = path.read_bytes()
    for changed in (content + b"\0", b"\0" + content, content[:-1], content + content):
        path.write_bytes(changed)
        with pytest.raises(ValueError, match="not a readable checkpoint"):
            read(path)
