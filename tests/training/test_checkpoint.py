"""Checkpoints are whole or absent, and never run code."""

from __future__ import annotations

import os
import pickle
import zipfile
from pathlib import Path

import pytest
import torch

from barlow_fast.checkpoints import training as checkpoint
from barlow_fast.checkpoints.layouts import PRETRAIN
from barlow_fast.training import load_checkpoint, newest_checkpoint, save_checkpoint


def test_round_trip(tmp_path: Path):
    path = tmp_path / "checkpoint.pt"
    save_checkpoint(path, {"step": 3, "weights": {"w": torch.arange(4.0)}, "names": ["a", None]})
    state = load_checkpoint(path)
    assert state["step"] == 3
    assert state["names"] == ["a", None]
    assert torch.equal(state["weights"]["w"], torch.arange(4.0))
    assert [entry.name for entry in tmp_path.iterdir()] == ["checkpoint.pt"]


@pytest.mark.parametrize("moment", ["write", "fsync", "replace"])
def test_a_failure_leaves_all_files_as_they_were(tmp_path: Path, monkeypatch, moment: str):
    path = tmp_path / "checkpoint.pt"
    for step in range(2):
        save_checkpoint(path, {"step": step}, keep=2)
    old = {entry: entry.read_bytes() for entry in tmp_path.iterdir()}

    def half_written(state, stream):
        stream.write(b"half of a che")
        raise OSError(28, "No space left on device")

    def fail(*args):
        raise OSError(5, "Input/output error")

    if moment == "write":
        monkeypatch.setattr(torch, "save", half_written)
    else:
        monkeypatch.setattr(os, moment, fail)
    expected = rf"^cannot write {path}: .*(space.*|error); the file before it is whole$"
    with pytest.raises(OSError, match=expected):
        save_checkpoint(path, {"step": 2}, keep=2)
    monkeypatch.undo()
    assert {entry: entry.read_bytes() for entry in tmp_path.iterdir()} == old
    found = {entry.name: load_checkpoint(entry)["step"] for entry in old}
    assert found == {"checkpoint.pt": 1, "checkpoint-1.pt": 0}


def test_the_file_is_on_disk_before_it_gets_its_name(tmp_path: Path, monkeypatch):
    events = []
    real_sync, real_replace = os.fsync, os.replace
    monkeypatch.setattr(os, "fsync", lambda d: (events.append("sync"), real_sync(d))[1])
    monkeypatch.setattr(os, "replace", lambda a, b: (events.append("name"), real_replace(a, b))[1])
    save_checkpoint(tmp_path / "checkpoint.pt", {"step": 1})
    assert events == ["sync", "name", "sync"]


class Payload:
    """A pickle that would touch a file when loaded."""

    def __init__(self, path: str) -> None:
        self.path = path

    def __reduce__(self):
        return (Path.touch, (Path(self.path),))


def test_loading_runs_nothing(tmp_path: Path):
    path, touched = tmp_path / "checkpoint.pt", tmp_path / "touched"
    torch.save({"format": PRETRAIN, "version": 2, "x": Payload(str(touched))}, path)
    with pytest.raises(ValueError, match="is refused: it holds objects"):
        load_checkpoint(path)
    assert not touched.exists()


@pytest.mark.parametrize(
    "content",
    [b"", b"no checkpoint", pickle.dumps({"step": 1}), b"PK\x03\x04 cut"],
    ids=["empty", "text", "pickle", "zip"],
)
def test_other_files_are_named_in_the_error(tmp_path: Path, content: bytes):
    path = tmp_path / "other.pt"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=r"other\.pt"):
        load_checkpoint(path)


@pytest.mark.parametrize("damage", ["cut", "one bit"])
def test_a_damaged_checkpoint_is_refused(tmp_path: Path, damage: str):
    path = tmp_path / "checkpoint.pt"
    save_checkpoint(path, {"weights": torch.rand(1000)})
    content = bytearray(path.read_bytes())
    if damage == "cut":
        del content[-500:]
    else:
        content[len(content) // 2] ^= 1  # inside the 4000 bytes of weights
    path.write_bytes(content)
    with pytest.raises(ValueError, match="not a readable checkpoint"):
        load_checkpoint(path)


def test_foreign_and_future_checkpoints_are_refused(tmp_path: Path):
    path = tmp_path / "checkpoint.pt"
    torch.save({"model": {}}, path)
    with pytest.raises(ValueError, match="not a checkpoint of"):
        load_checkpoint(path)
    torch.save({"format": PRETRAIN, "version": 99}, path)
    with pytest.raises(ValueError, match="version 99"):
        load_checkpoint(path)
    with pytest.raises(FileNotFoundError, match="nowhere"):
        load_checkpoint(tmp_path / "nowhere.pt")


@pytest.mark.parametrize("keep", [1, 2, 3])
def test_older_files_are_kept_and_no_more_than_requested(tmp_path: Path, keep: int):
    path = tmp_path / "checkpoint.pt"
    for step in range(5):
        save_checkpoint(path, {"step": step}, keep)
        assert load_checkpoint(path)["step"] == step
    found = {p.name: load_checkpoint(p)["step"] for p in tmp_path.iterdir()}
    steps = {"checkpoint.pt": 4, "checkpoint-1.pt": 3, "checkpoint-2.pt": 2}
    assert found == dict(list(steps.items())[:keep])


def test_a_file_system_without_links_keeps_copies(tmp_path: Path, monkeypatch):
    def refuse(*_):
        raise PermissionError("no links here")

    monkeypatch.setattr(checkpoint.os, "link", refuse)
    path = tmp_path / "checkpoint.pt"
    for step in range(3):
        save_checkpoint(path, {"step": step}, keep=2)
    assert load_checkpoint(tmp_path / "checkpoint-1.pt")["step"] == 1


def test_the_newest_whole_file_is_found(tmp_path: Path):
    path = tmp_path / "checkpoint.pt"
    assert newest_checkpoint(path) is None
    for step in range(3):
        save_checkpoint(path, {"step": step}, keep=3)
    assert newest_checkpoint(path) == (path, [])
    path.write_bytes(path.read_bytes()[:200])
    found, complaints = newest_checkpoint(path)
    assert load_checkpoint(found)["step"] == 1
    assert len(complaints) == 1
    assert "checkpoint.pt" in complaints[0]
    path.unlink()
    found, complaints = newest_checkpoint(path)
    assert found == tmp_path / "checkpoint-1.pt"
    assert complaints == [f"no checkpoint at {path}"]
    # Whatever numbers are missing between.
    found.unlink()
    found, complaints = newest_checkpoint(path)
    assert found == tmp_path / "checkpoint-2.pt"
    assert len(complaints) == 1
    found.rename(tmp_path / "checkpoint-1.pt")
    (tmp_path / "checkpoint-10.pt").write_bytes(b"")
    for old in tmp_path.glob("checkpoint-*.pt"):
        old.write_bytes(b"")
    with pytest.raises(ValueError, match=r"checkpoint-1\.pt.*checkpoint-10\.pt.*begin anew"):
        newest_checkpoint(path)


def test_files_without_a_digest_are_of_an_earlier_version(tmp_path: Path):
    path = tmp_path / "checkpoint.pt"
    torch.save({"format": PRETRAIN, "version": 2, "step": 7}, path)
    assert load_checkpoint(path)["step"] == 7
    torch.save({"format": PRETRAIN, "version": 3, "step": 7}, path)
    with pytest.raises(ValueError, match="the digest at its end is damaged"):
        load_checkpoint(path)


def test_a_run_that_was_killed_between_two_names_leaves_nothing(tmp_path: Path):
    """The older file then is the same as the newest, and renaming one to the other does nothing."""
    path = tmp_path / "checkpoint.pt"
    save_checkpoint(path, {"step": 1})
    os.link(path, tmp_path / "checkpoint-1.pt")
    save_checkpoint(path, {"step": 2}, keep=2)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["checkpoint-1.pt", "checkpoint.pt"]


def test_other_programs_read_it(tmp_path: Path):
    path = tmp_path / "checkpoint.pt"
    save_checkpoint(path, {"weights": torch.arange(4.0)})
    for options in ({}, {"mmap": True}):
        state = torch.load(path, weights_only=True, **options)
        assert torch.equal(state["weights"], torch.arange(4.0))


def test_a_checkpoint_that_unpacks_to_much_more_is_refused_before_it_is_read(tmp_path: Path):
    """The same reader as for the weights of other libraries."""
    path = tmp_path / "checkpoint.pt"
    save_checkpoint(path, {"weights": torch.zeros(2**22)})
    with zipfile.ZipFile(path) as stored:
        records = {name: stored.read(name) for name in stored.namelist()}
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in records.items():
            archive.writestr(name, content)
    assert path.stat().st_size < 2**17
    with pytest.raises(ValueError, match=r"it unpacks to \d+ bytes and has"):
        load_checkpoint(path)


@pytest.mark.skipif(not os.path.isdir("/proc/self/fd"), reason="needs /proc")
def test_saving_leaves_no_file_open(tmp_path: Path):
    save_checkpoint(tmp_path / "c.pt", {"step": 1})
    before = len(os.listdir("/proc/self/fd"))
    for step in range(3):
        save_checkpoint(tmp_path / "c.pt", {"step": step}, keep=2)
        load_checkpoint(tmp_path / "c.pt")
    assert len(os.listdir("/proc/self/fd")) == before
