"""Feeds in processes of their own: turns, failures, and that they never outlive their parent.

Nothing here imports torch, so that each of the many processes starts at once.
"""

from __future__ import annotations

import contextlib
import ctypes
import multiprocessing
import os
import signal
import subprocess
import sys
import threading
import time

import pytest
from ended import SECONDS, alive, gone, until

from bench import lifetime
from bench.views import turns

LINUX = pytest.mark.skipif(sys.platform != "linux", reason="PR_SET_PDEATHSIG is Linux's")

# Openers of feeds. They are imported there by name.


@contextlib.contextmanager
def counting(step: float):
    """Until the context is closed."""
    closed = threading.Event()

    def counts():
        while not closed.wait(step):
            yield 10

    try:
        yield turns.Feed(counts())
    finally:
        closed.set()


@contextlib.contextmanager
def with_workers(file, busy=False):
    """In a session of its own, with a child and a child of that; where it is busy, it never answers
    and never lets another thread run."""
    os.setsid()
    reader, writer = os.pipe()
    if not os.fork():
        worker = os.getpid()
        if os.fork():
            os.write(writer, b"%d " % worker)
        else:
            os.write(writer, b"%d " % os.getpid())
        signal.pause()
    found = f"{os.getpid()} "
    while found.count(" ") < 3:
        found += os.read(reader, 100).decode()
    write(file, found)
    if busy:
        ctypes.PyDLL(None).pause()
    yield turns.Feed(iter(lambda: 1, 2))


def write(file, text):
    """All of it, or nothing yet."""
    partial = file.with_suffix(".partial")
    partial.write_text(text)
    partial.rename(file)


@contextlib.contextmanager
def raising():
    raise ValueError("no such image")
    yield


@contextlib.contextmanager
def dying():
    os._exit(7)
    yield


@LINUX
def test_feeds_take_turns_and_failures_are_named(tmp_path):
    file = tmp_path / "workers"
    runners = [
        turns.Runner("slow", counting, (0.02,), None, SECONDS),
        turns.Runner("workers", with_workers, (file,), None, SECONDS),
        turns.Runner("raising", raising, (), None, SECONDS),
        turns.Runner("dying", dying, (), None, SECONDS),
    ]
    rates, _, failures = turns.race(runners, 2, 0.2)
    assert failures == {"raising": "ValueError: no such image", "dying": "its process died"}
    assert {name: len(found) for name, found in rates.items()} == {"slow": 2, "workers": 2}
    assert 0 < min(rates["slow"]) <= max(rates["slow"]) <= 10 / 0.02
    assert all(gone(int(pid)) for pid in file.read_text().split())


def test_a_feed_that_does_not_answer_is_ended():
    runner = turns.Runner("stuck", counting, (1000.0,), None, deadline=0.1)
    rates, _, failures = turns.race([runner], 1, 0.1)
    assert rates == {}
    assert failures == {"stuck": "did not answer within 0 s"}
    assert gone(runner.pid)


def test_a_feed_makes_nothing_after_its_answer(monkeypatch):
    """It has had the time to make ready what it makes ready, and that is not timed."""
    log = []
    monkeypatch.setattr(time, "sleep", lambda seconds: log.append(seconds > 0))
    count, _, _ = turns._timed(turns.Feed(iter(lambda: log.append("next") or 1, 2)), 0.0, ahead=3)
    assert log == ["next"] * (3 + turns.FEWEST) + [True]
    assert count == turns.FEWEST


# Entries of processes that start others and are killed.


def start_a_feed(file):
    runner = turns.Runner("feed", with_workers, (file, file.stem == "busy"), None, SECONDS)
    runner.start()
    threading.Event().wait()


def start_a_command(file):
    code = "import os, signal; os.setsid(); print(os.getpid(), flush=True); signal.pause()"
    command = [sys.executable, "-c", code]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, preexec_fn=lifetime.tied())
    write(file, process.stdout.readline().decode())
    threading.Event().wait()


def start_without_the_system(file):
    multiprocessing.get_context("spawn").Process(target=tied_by_a_pipe, args=(file,)).start()


def tied_by_a_pipe(file):
    lifetime._LIBC = None
    lifetime.end_with_parent()
    write(file, str(os.getpid()))
    threading.Event().wait()


@pytest.mark.parametrize(
    ("start", "name"),
    [
        pytest.param(start_a_feed, "waiting", marks=LINUX),
        pytest.param(start_a_feed, "busy", marks=LINUX),
        pytest.param(start_a_command, "command", marks=LINUX),
        (start_without_the_system, "pipe"),
    ],
)
def test_processes_end_with_their_parent(tmp_path, start, name):
    file = tmp_path / name
    parent = multiprocessing.get_context("spawn").Process(target=start, args=(file,))
    parent.start()
    try:
        assert until(file.exists)
    finally:
        parent.kill()
        parent.join()
    for pid in map(int, file.read_text().split()):
        assert gone(pid)


@LINUX
def test_a_process_whose_parent_has_ended_before_ends(tmp_path):
    """The signal comes only once it is requested, which may be too late."""
    process = multiprocessing.get_context("spawn").Process(target=lifetime.end_with, args=(1,))
    process.start()
    process.join()
    assert process.exitcode == 1
    assert not alive(process.pid)


IGNORING = """
import os, signal
if not os.fork():
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
os.write(1, b"%d\\n" % os.getpid())
signal.pause()
"""


def test_a_command_ends_with_what_it_started_that_ignores_the_signal():
    command = [sys.executable, "-c", IGNORING]
    with subprocess.Popen(command, stdout=subprocess.PIPE, start_new_session=True) as process:
        pids = [int(process.stdout.readline()) for _ in range(2)]
        lifetime.stop(process, (signal.SIGTERM,), SECONDS)
        assert process.returncode == -signal.SIGTERM
        assert all(map(gone, pids))
