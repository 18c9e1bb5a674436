"""Whole files or none, under names that nobody can plant a link at, and nothing left over."""

from __future__ import annotations

import contextlib
import errno
import os
import resource
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from ended import completed, running

from barlow_fast import files
from barlow_fast.checkpoints import archive, save_official
from barlow_fast.files import (
    Process,
    WriteError,
    append_text,
    check_output,
    is_inside,
    remove_abandoned,
    temporary_name,
    this_process,
    whole_file,
    whole_folder,
    write_whole,
)
from barlow_fast.models import build_twins
from barlow_fast.training import save_checkpoint


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def model(path: Path) -> None:
    network = build_twins(channels=1, encoder_widths=(4,), projector=(8, 6))
    save_official(path, network, epoch=1)


def checkpoints(path: Path) -> None:
    for step in range(3):
        save_checkpoint(path, {"step": step}, keep=2)


def folder(path: Path) -> None:
    path.unlink(missing_ok=True)
    with whole_folder(path) as made:
        (made / "inside").touch()


WRITERS: dict[str, Callable[[Path], None]] = {
    "bytes": lambda path: write_whole(path, b"1"),
    "text": lambda path: write_whole(path, "1"),
    "added": lambda path: append_text(path, "1"),
    "official": model,
    "checkpoints": checkpoints,
    "folder": folder,
}


@pytest.mark.parametrize("name", WRITERS)
@pytest.mark.parametrize("mask", [0o027, 0o002])
def test_permissions_follow_the_umask(tmp_path: Path, name: str, mask: int):
    old = os.umask(mask)
    try:
        WRITERS[name](tmp_path / "file")
    finally:
        os.umask(old)
    for path in tmp_path.iterdir():
        assert path.stat().st_mode & 0o777 == (0o777 if path.is_dir() else 0o666) & ~mask, path


@pytest.mark.parametrize("name", [name for name in WRITERS if name != "added"])
def test_a_link_takes_no_one_elsewhere(tmp_path: Path, monkeypatch, name: str):
    """Even where somebody guesses the temporary name."""
    victim = tmp_path / "victim"
    victim.write_text("precious")
    out = tmp_path / "out"
    out.mkdir()
    monkeypatch.setattr(files.secrets, "token_hex", lambda _: "0" * 16)
    planted = temporary_name(out / "file")
    planted.symlink_to(victim)
    with pytest.raises(WriteError, match=r"cannot write .*/out/file: File exists"):
        WRITERS[name](out / "file")
    assert victim.read_text() == "precious"
    assert names(out) == [planted.name]
    # One in the file's own place is replaced.
    planted.unlink()
    (out / "file").symlink_to(victim)
    WRITERS[name](out / "file")
    assert victim.read_text() == "precious"
    assert not (out / "file").is_symlink()


def test_nothing_is_added_through_a_link(tmp_path: Path):
    (tmp_path / "victim").write_text("precious")
    (tmp_path / "log").symlink_to(tmp_path / "victim")
    with pytest.raises(WriteError, match=r"cannot write .*log"):
        append_text(tmp_path / "log", "more")
    assert (tmp_path / "victim").read_text() == "precious"


def test_names_are_no_two_alike_and_as_long_as_the_file_system_takes(tmp_path: Path):
    assert temporary_name(tmp_path / "a") != temporary_name(tmp_path / "a")
    for name in ("n" * 255, "ü" * 127):
        write_whole(tmp_path / name, b"1")
        assert (tmp_path / name).read_bytes() == b"1"


@contextlib.contextmanager
def small_files_only(limit: int) -> Iterator[None]:
    """The kernel lets no file grow beyond so many bytes, as on a disk that is full."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_a_full_disk_is_one_line_that_names_the_file(tmp_path: Path):
    """torch reports "unexpected pos"."""
    path = tmp_path / "checkpoint.pt"
    big = {"weights": torch.zeros(2**20)}
    with small_files_only(2**20), pytest.raises(WriteError) as first:
        save_checkpoint(path, big)
    assert str(first.value) == f"cannot write {path}: File too large"
    assert first.value.errno == errno.EFBIG
    save_checkpoint(path, {"step": 1})
    with small_files_only(2**20), pytest.raises(WriteError) as second:
        save_checkpoint(path, big)
    assert str(second.value) == (
        f"cannot write {path}: File too large; the file before it is whole"
    )
    assert names(tmp_path) == ["checkpoint.pt"]
    with small_files_only(2**20), pytest.raises(WriteError, match=r"cannot write .*x: File too"):
        write_whole(tmp_path / "x", bytes(2**21))


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full on this system")
def test_no_space_left_is_what_the_system_calls_it():
    with pytest.raises(OSError, match="No space left on device") as error:
        archive.save({"weights": torch.zeros(2**20)}, Path("/dev/full"))
    assert error.value.errno == errno.ENOSPC


def test_errors_of_other_files_are_not_taken_for_its_own(tmp_path: Path):
    with pytest.raises(PermissionError, match="elsewhere"), whole_file(tmp_path / "report"):
        raise PermissionError(errno.EACCES, "Permission denied", "elsewhere")
    assert names(tmp_path) == []


def test_a_folder_that_cannot_be_written(tmp_path: Path):
    if os.geteuid() == 0:
        place = Path("/proc/self")  # where nobody creates files
    else:
        place = tmp_path
        tmp_path.chmod(0o500)
    with pytest.raises(WriteError, match=rf"cannot write {place}/x: "):
        write_whole(place / "x", b"1")
    with pytest.raises(FileNotFoundError, match="no folder"):
        write_whole(tmp_path / "none" / "x", b"1")
    with pytest.raises(ValueError, match="is a folder"):
        write_whole(tmp_path, b"1")


@pytest.fixture(scope="module")
def ended() -> Process:
    """A process that has ended."""
    program = "from barlow_fast.files import this_process; print(this_process())"
    machine, pid, start = completed(sys.executable, "-c", program).stdout.strip().split("-")
    return Process(machine, int(pid), int(start))


def test_who_has_ended(ended: Process):
    mine = this_process()
    assert mine.has_ended() is False
    assert ended.has_ended() is True
    assert mine._replace(start=mine.start - 1).has_ended() is True  # its number was given again
    assert mine._replace(pid=2**70).has_ended() is True
    assert mine._replace(machine="0" * 12).has_ended() is None


def test_what_the_dead_left_is_removed_and_nothing_else(tmp_path: Path, ended: Process):
    mine, other = this_process(), Process("0" * 12, 1, 1)
    token = "0123456789abcdef"
    kept = [f".a.{mine}-{token}.part", f".a.{other}-{token}.part", ".a.part", f"a.{ended}.part"]
    left = [f".a.{ended}-{token}.part", f".b.c.{ended}-{token}.part", f".d.{other}-{token}.part"]
    for name in (*kept, *left):
        (tmp_path / name).touch()
    (tmp_path / f".folder.{ended}-{token}.part").mkdir()
    os.utime(tmp_path / left[2], (1, 1))
    write_whole(tmp_path / "file", b"1")
    assert names(tmp_path) == sorted([*kept, "file"])
    # Where nobody else can be writing the file.
    remove_abandoned(tmp_path, "a".__eq__)
    assert names(tmp_path) == sorted([kept[0], *kept[2:], "file"])


WAITING = """
import sys
from barlow_fast.files import whole_file
with whole_file(sys.argv[1]) as temporary:
    temporary.write_bytes(b"half")
    print(temporary.name, flush=True)
    input()
"""


def test_a_process_killed_while_it_writes_leaves_nothing_for_long(tmp_path: Path):
    command = [sys.executable, "-c", WAITING, tmp_path / "file"]
    with running(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        temporary = process.stdout.readline().strip()
        remove_abandoned(tmp_path)
        assert names(tmp_path) == [temporary]
        process.kill()
        process.wait()
    write_whole(tmp_path / "other", b"1")
    assert names(tmp_path) == ["other"]


def test_a_folder_is_looked_through_once(tmp_path: Path, monkeypatch):
    """One of thousands of shards gets an index for each."""
    looked: list[Path] = []
    monkeypatch.setattr(files, "remove_abandoned", looked.append)
    for number in range(3):
        write_whole(tmp_path / str(number), b"1")
    assert looked == [tmp_path]


def test_results_take_the_place_of_their_like_alone(tmp_path: Path):
    """Whatever the path's spelling; before the work whose results they are."""
    target, given = tmp_path / "scores.json", tmp_path / "given.json"
    check_output(target, b"{", [given, tmp_path / "absent"])
    for content in (b"", b"{}"):
        target.write_bytes(content)
        check_output(target, b"{", [given])
    target.write_bytes(b"PK")
    with pytest.raises(ValueError, match=r"^--json .*scores.json is there already and holds some"):
        check_output(target, b"{", [], "--json")
    given.write_text("{}")
    (tmp_path / "link.json").symlink_to(given)
    os.link(given, tmp_path / "second.json")
    for name in ("given.json", "link.json", "second.json", "../" + tmp_path.name + "/given.json"):
        with pytest.raises(ValueError, match=f"{name} is the input .*given.json"):
            check_output(tmp_path / name, b"{", [given])
    with pytest.raises(ValueError, match="is a folder"):
        check_output(tmp_path, b"{")
    with pytest.raises(FileNotFoundError, match=r"--json .*: no folder .*absent"):
        check_output(tmp_path / "absent" / "x", b"{", option="--json")
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(ValueError, match="is not a regular file"):
        check_output(tmp_path / "pipe", b"{")


def test_what_lies_in_a_folder(tmp_path: Path):
    (tmp_path / "link").symlink_to(tmp_path / "a")
    for inner, outer, inside in (
        ("a", "a", True), ("a/b/c", "a", True), ("link/x", "a", True), ("a/x", "link", True),
        ("a/../b", "a", False), ("ab", "a", False), ("a", "a/b", False),
    ):  # fmt: skip
        assert is_inside(tmp_path / inner, tmp_path / outer) == inside, (inner, outer)
