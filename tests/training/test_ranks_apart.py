"""Two ranks of which one is not as the other: both continue, or both report why not, at once."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from apart_on_ranks import write_images
from ended import alive, gone, running
from launched import LAUNCH, pretraining


@pytest.fixture(scope="module")
def said(two_ranks: Path) -> list[dict[str, str]]:
    """What each rank said in each scenario."""
    return [json.loads((two_ranks / f"said-{rank}.json").read_text()) for rank in (0, 1)]


@pytest.mark.parametrize(
    "name", ["parts", "parts without sync", "parts of shards", "a compiler", "nothing"]
)
def test_ranks_that_differ_continue(name: str, said):
    assert [ours[name] for ours in said] == ["finished"] * 2


def test_a_damaged_image_is_reported_by_one_rank_in_one_epoch(said):
    """Nine of 48, which come to another rank in every epoch."""
    ends, counts, known = zip(*(ours["reported"].split() for ours in said), strict=True)
    assert ends == ("finished", "finished")
    assert sum(map(int, counts)) == 9
    assert known == ("9", "9")


@pytest.mark.parametrize(
    ("name", "who", "words"),
    [
        ("a damaged image", 1, "image file is truncated"),
        ("no image of a batch", 1, "nor can any other of the 8 images of its batch"),
        ("a forward", 1, "out of memory"),
        ("a score", 0, "out of memory"),
        ("a hook", 0, "no space left for a hook"),
        ("the last hook", 0, "no space left for a hook"),
        ("a checkpoint", 0, "checkpoint.pt"),
    ],
)
def test_what_fails_on_one_rank_both_say(name: str, who: int, words: str, said):
    assert words in said[who][name]
    assert not said[who][name].startswith("rank")
    other = said[1 - who][name]
    assert f"rank {who} of process_group: " in other
    assert words in other


@pytest.mark.parametrize(
    ("name", "words"),
    [("other settings", "lambd: 0.1 on rank 0, 0.2 on rank 1"), ("other data", "data images: ")],
)
def test_ranks_that_are_not_about_to_do_the_same(name: str, words: str, said):
    for ours in said:
        assert "the ranks of process_group differ: " in ours[name]
        assert words in ours[name]


def children(pid: int) -> list[int]:
    """Of a process, theirs included."""
    found = []
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            parent = int(path.read_text().rpartition(")")[2].split()[1])
        except (OSError, ValueError):
            continue
        if parent == pid:
            child = int(path.parent.name)
            found += [child, *children(child)]
    return found


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="looks for processes in /proc")
def test_nothing_outlives_a_torchrun_that_was_killed(tmp_path: Path):
    folder, out = write_images(tmp_path / "images"), tmp_path / "out"
    settings = [
        "--device", "cpu", "--data", folder, "--views", "cifar", "--encoder", "small",
        "--batch-size", "16", "--projector", "16-16", "--workers", "1", "epochs=4000",
        "evaluate_every=4000", "checkpoint_every=1", "encoder_widths=[8]",
    ]  # fmt: skip
    with pretraining(out, *settings, launcher=LAUNCH, stderr=None) as process:
        started = children(process.pid)
        assert len(started) >= 2  # one for each rank
        process.kill()
        process.wait()
        for pid in started:
            assert gone(pid), pid


# A process that waits for something that never comes, with SIGTERM ignored as in a hang.
HANGING = """
import os, signal, sys, threading
from barlow_fast.training import ranks
ranks.LOOK_EVERY, ranks.GRACE = 0.05, 0.2
child = os.fork()
if child:
    print(child, flush=True)
    sys.stdin.readline()
    os._exit(0)
signal.signal(signal.SIGTERM, lambda *_: print("received", flush=True))
threading.Thread(target=ranks._follow_launcher, args=(os.getppid(),), daemon=True).start()
while True:
    signal.pause()
"""


def test_a_rank_that_hangs_ends_after_its_launcher():
    with running(
        [sys.executable, "-c", HANGING], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as process:
        child = int(process.stdout.readline())
        assert alive(child)
        process.send_signal(signal.SIGKILL)
        assert gone(child)
        assert process.stdout.read() == "received\n"
