"""A task for every image of a source, by threads: order, errors, bounds, ends."""

from __future__ import annotations

import threading

import numpy as np
import pytest
from ended import until

from barlow_fast.data import parallel
from barlow_fast.data.parallel import AHEAD, in_order
from barlow_fast.data.sources import ArraySource

LIMIT = 0.5  # seconds


def numbers(count: int) -> ArraySource:
    return ArraySource(np.zeros((count, 1, 1, 1), np.uint8), name="numbers")


def running_threads() -> list[threading.Thread]:
    return [t for t in threading.enumerate() if t.name.startswith("barlow_fast data thread")]


def square(index: int) -> int:
    return index * index


def refuse(index: int) -> int:
    if index == 5:
        raise ValueError("five")
    return index


@pytest.mark.parametrize("workers", [0, 1, 3, None])
@pytest.mark.parametrize("count", [1, 7, 4 * AHEAD])
def test_results_come_in_order(count: int, workers: int | None):
    assert list(in_order(numbers(count), square, workers)) == [i * i for i in range(count)]
    assert not running_threads()


@pytest.mark.parametrize("seconds", [0.0, 3600.0])
def test_threads_are_not_started_for_images_that_take_little_time(monkeypatch, seconds: float):
    monkeypatch.setattr(parallel, "WORTH_THREADS", seconds)
    some = in_order(numbers(100), square)
    assert [next(some) for _ in range(parallel.TRIED + 1)][-1] == parallel.TRIED**2
    assert bool(running_threads()) == (not seconds)
    some.close()


@pytest.mark.parametrize("workers", [0, 2, None])
def test_what_a_task_raises_is_raised_when_its_image_is_due(workers: int):
    some = in_order(numbers(100), refuse, workers)
    assert [next(some) for _ in range(5)] == [0, 1, 2, 3, 4]
    with pytest.raises(ValueError, match="five"):
        next(some)
    assert not running_threads()


def test_threads_end_with_the_iteration():
    some = in_order(numbers(100), square, 2)
    assert next(some) == 0
    assert len(running_threads()) == 2
    some.close()
    assert not running_threads()


def test_no_more_threads_than_there_is_work_for():
    some = in_order(numbers(3), square, 10**9)
    assert next(some) == 0
    assert len(running_threads()) <= 3
    assert list(some) == [1, 4]


def test_no_more_results_exist_than_are_allowed():
    called: list[int] = []
    some = in_order(numbers(10 * AHEAD), called.append, 2)
    for taken in range(1, 5):
        next(some)
        assert until(lambda: len(called) == 2 * AHEAD + taken)  # noqa: B023
        assert len(called) == 2 * AHEAD + taken
    some.close()


def test_a_thread_that_cannot_start_is_an_error(monkeypatch: pytest.MonkeyPatch):
    def start(self) -> None:
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(threading.Thread, "start", start)
    with pytest.raises(RuntimeError, match="can't start new thread"):
        list(in_order(numbers(100), square, 2))


def test_storage_that_does_not_answer_is_given_up(monkeypatch, caplog):
    monkeypatch.setattr(parallel, "TIMEOUT", LIMIT)
    monkeypatch.setattr(parallel, "REMARK_AFTER", LIMIT / 2)
    monkeypatch.setattr(parallel, "PATIENCE", 0.0)
    answer = threading.Event()
    some = in_order(numbers(9), lambda index: index < 4 or answer.wait(), 2)
    assert [next(some) for _ in range(4)] == [True] * 4
    message = r"no image has been read for 0.5 s, such as numbers\[4\]: the storage of numbers"
    with pytest.raises(RuntimeError, match=message):
        next(some)
    assert "is the storage of numbers slow?" in caplog.text
    # As soon as it answers, the threads end as well.
    answer.set()
    assert until(lambda: not running_threads())
