"""Two runs on one folder: the second is refused while the first lives, and no longer."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from commands import pretrain
from ended import running, until
from launched import pretraining

from barlow_fast.files import this_process
from barlow_fast.training import folder_lock, load_checkpoint, run_folder, save_checkpoint
from barlow_fast.training.folder_lock import FILE, FolderInUse, FolderLock

TINY = ["--epochs", "1", "--batch-size", "256", "--projector", "8-12", "encoder_widths=[4]"]


@pytest.fixture
def locked(tmp_path: Path) -> Iterator[FolderLock]:
    lock = FolderLock(tmp_path)
    yield lock
    lock.release()


def of_another_machine(folder: Path) -> Path:
    path = folder / FILE
    path.write_text(json.dumps({"host": "node7", "process": ["0" * 12, 5, 6]}))
    return path


@pytest.fixture
def looks(monkeypatch) -> Callable[[Callable[[], None]], list[float]]:
    """Does something at the third look at a lock, instead of waiting."""

    def then(action: Callable[[], None]) -> list[float]:
        waited: list[float] = []

        def sleep(seconds: float) -> None:
            waited.append(seconds)
            if len(waited) == 3:
                action()

        monkeypatch.setattr(folder_lock, "_sleep", sleep)
        return waited

    return then


def test_a_lock_is_one_processs_until_it_is_released(tmp_path: Path, locked: FolderLock):
    with pytest.raises(FolderInUse, match=rf"{tmp_path} is in use by process {os.getpid()} on"):
        FolderLock(tmp_path)
    locked.check()
    locked.release()
    locked.release()
    assert not (tmp_path / FILE).exists()
    FolderLock(tmp_path).release()
    assert list(tmp_path.iterdir()) == []


def test_a_lock_of_a_dead_process_or_of_a_number_given_again_counts_for_nothing(tmp_path: Path):
    mine = this_process()
    for process in (mine._replace(start=mine.start - 1), mine._replace(pid=2**40)):
        (tmp_path / FILE).write_text(json.dumps({"host": "here", "process": process}))
        FolderLock(tmp_path).release()
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("content", ["unreadable", "other"])
def test_a_lock_of_another_machine_is_watched(tmp_path: Path, looks, content: str):
    """It is taken over when nobody has touched it; as is one that nobody can read."""
    path = of_another_machine(tmp_path)
    if content == "unreadable":
        path.write_bytes(b"")
    reports: list[str] = []
    waited = looks(lambda: os.utime(path, ns=(1, path.stat().st_mtime_ns + 1)))
    with pytest.raises(FolderInUse, match="in use by"):
        FolderLock(tmp_path, reports.append)
    assert len(waited) == 3
    assert "watching for up to 60 s whether that run still lives" in reports[0]
    waited = looks(lambda: None)
    FolderLock(tmp_path).release()
    assert sum(waited) == 60 > 5 * folder_lock.TOUCH_EVERY
    assert list(tmp_path.iterdir()) == []


def test_a_lock_that_is_released_meanwhile_is_free(tmp_path: Path, looks):
    waited = looks(of_another_machine(tmp_path).unlink)
    FolderLock(tmp_path).release()
    assert len(waited) == 3


def test_two_that_find_a_dead_lock_do_not_both_get_it(tmp_path: Path, looks):
    """The second has judged the old file, and finds the first one's in its place."""
    of_another_machine(tmp_path)
    first: list[FolderLock] = []
    real = folder_lock._take_away

    def slow(path: Path, judged: folder_lock.Seen) -> None:
        if not first:
            real(path, judged)
            first.append(FolderLock(tmp_path))
        real(path, judged)

    looks(lambda: None)
    folder_lock._take_away = slow
    try:
        with pytest.raises(FolderInUse, match=f"process {os.getpid()}"):
            FolderLock(tmp_path)
    finally:
        folder_lock._take_away = real
    first[0].check()
    first[0].release()
    assert list(tmp_path.iterdir()) == []


def test_it_is_touched_while_it_is_held(tmp_path: Path, monkeypatch):
    touched = threading.Event()
    monkeypatch.setattr(folder_lock, "TOUCH_EVERY", 1e-3)
    monkeypatch.setattr(folder_lock.os, "utime", lambda _: touched.set())
    lock = FolderLock(tmp_path)
    assert until(touched.is_set)
    lock.release()


def test_a_run_whose_folder_was_taken_over_writes_nothing_more(tmp_path: Path, locked: FolderLock):
    (tmp_path / FILE).unlink()
    locked.check()  # makes it again
    assert (tmp_path / FILE).exists()
    (tmp_path / FILE).unlink()
    of_another_machine(tmp_path)
    with pytest.raises(FolderInUse, match="taken over by process 5 on node7 while"):
        locked.check()
    locked.release()
    assert (tmp_path / FILE).exists()


def test_a_link_in_its_place_is_not_followed(tmp_path: Path, looks):
    (tmp_path / "victim").write_text("precious")
    (tmp_path / FILE).symlink_to(tmp_path / "victim")
    with pytest.raises(OSError, match=FILE):
        FolderLock(tmp_path)
    assert (tmp_path / "victim").read_text() == "precious"


def test_a_full_disk_leaves_no_lock(tmp_path: Path, monkeypatch):
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(folder_lock.os, "write", full)
    with pytest.raises(OSError, match=f"cannot write to {tmp_path}: No space left on device"):
        FolderLock(tmp_path)
    assert list(tmp_path.iterdir()) == []


# The command.


HOLDING = """
import sys
from pathlib import Path
from barlow_fast.training.folder_lock import FolderLock
lock = FolderLock(Path(sys.argv[1]))
print("locked", flush=True)
input()
"""


def test_a_folder_is_free_at_once_when_its_process_is_dead(tmp_path: Path, undrawn):
    pretrain(*TINY, "--no-tensorboard", "--out", tmp_path)
    command = [sys.executable, "-c", HOLDING, tmp_path]
    with running(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdout.readline() == "locked\n"
        refused = pretrain("--resume", "auto", "--out", tmp_path, code=2)
        assert f"{tmp_path} is in use by process {process.pid} on " in refused.stderr
        assert len(refused.stderr.strip().splitlines()) == 1
        process.kill()
        process.wait()
    pretrain("--resume", "auto", "--out", tmp_path)
    assert not (tmp_path / FILE).exists()


@pytest.mark.slow
def test_the_second_run_on_a_folder_is_refused_until_the_first_is_dead(tmp_path: Path, undrawn):
    out = tmp_path / "out"
    arguments = [*TINY, "epochs=50000", "checkpoint_every=1", "evaluate_every=50000"]
    with pretraining(out, *arguments, stderr=subprocess.DEVNULL) as process:
        for arguments in (["--resume", "auto"], ["--resume", out / "checkpoint.pt"], []):
            second = pretrain(*arguments, "--out", out, code=2)
            assert f"{out} is in use by process {process.pid}" in second.stderr
            assert len(second.stderr.strip().splitlines()) == 1
        process.send_signal(signal.SIGKILL)
        process.wait()
    state = load_checkpoint(out / "checkpoint.pt")
    # So that little is left to do.
    state["config"]["epochs"] = max(state["epoch"] + 1, state["config"]["warmup_epochs"])
    save_checkpoint(out / "checkpoint.pt", state)
    pretrain("--resume", "auto", "--out", out)
    assert not [path.name for path in out.iterdir() if path.name.startswith(".")]


def test_what_a_run_of_another_machine_left_is_removed(tmp_path: Path, undrawn):
    left = f".checkpoint-1.pt.{'0' * 12}-1-1-{'0' * 16}.part"
    kept = f".scores.json.{'0' * 12}-1-1-{'0' * 16}.part"
    for name in (left, kept):
        (tmp_path / name).touch()
    pretrain(*TINY, "--no-tensorboard", "--out", tmp_path)
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith(".")] == [kept]


def test_older_checkpoints_are_not_lost_either(tmp_path: Path):
    save_checkpoint(tmp_path / "checkpoint-2.pt", {"step": 1})
    refused = pretrain(*TINY, "--out", tmp_path, code=2)
    assert f"--resume {tmp_path / 'checkpoint-2.pt'}" in refused.stderr
    assert not (tmp_path / FILE).exists()


def test_new_folders_are_nobody_elses(tmp_path: Path):
    found = [run_folder._fresh_folder(tmp_path, "digits") for _ in range(3)]
    assert [path.name for path in found] == ["digits", "digits-2", "digits-3"]
    assert all(path.is_dir() for path in found)
