"""The order of an epoch, and its batches: each sample once, for every rank and batch size."""

from __future__ import annotations

import math
import time

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from barlow_fast.data import Position, Shard, batches, batches_per_epoch, order


def test_order_is_a_pure_permutation():
    a = order(1, 2, 1000)
    assert a.dtype == np.int64
    np.testing.assert_array_equal(np.sort(a), np.arange(1000))
    np.testing.assert_array_equal(a, order(1, 2, 1000))
    assert (a == order(1, 3, 1000)).mean() < 0.02
    assert (a == order(2, 2, 1000)).mean() < 0.02


def test_order_puts_every_sample_everywhere():
    positions = np.stack([np.argsort(order(0, epoch, 50)) for epoch in range(2000)])
    error = math.sqrt(50**2 / 12 / 2000)
    assert np.abs(positions.mean(0) - 24.5).max() < 5 * error


@pytest.mark.parametrize("count", [0, 1, 2, 3, 64, 65])
def test_order_of_few(count):
    np.testing.assert_array_equal(np.sort(order(0, 0, count)), np.arange(count))


def test_old_seeds_have_their_old_order():
    # As the first version of `order` gave it: runs that stopped must be able to resume.
    assert order(0, 0, 12).tolist() == [3, 0, 5, 10, 6, 11, 2, 4, 8, 9, 1, 7]
    assert order(7, 3, 1000)[:6].tolist() == [832, 741, 549, 205, 413, 505]


def test_an_epoch_of_imagenet_is_ordered_quickly():
    best = math.inf
    for epoch in range(5):
        start = time.process_time()
        order(0, epoch, 1_281_167)
        best = min(best, time.process_time() - start)
    # Less than a tenth of a second of processor time, which others on the machine cannot take.
    assert best < 0.6


EPOCHS = {
    "seed": st.integers(0, 2**64 - 1),
    "epoch": st.integers(0, 2**32 - 1),
    "count": st.integers(0, 300),
    "batch_size": st.integers(1, 40),
    "ranks": st.integers(1, 9),
}


def whole_epoch(seed, epoch, count, batch_size, ranks, drop_last) -> list[list[np.ndarray]]:
    """[rank][batch]."""
    return [
        list(batches(seed, epoch, count, batch_size, Shard(rank, ranks), drop_last))
        for rank in range(ranks)
    ]


@settings(deadline=None)  # other processes may hold the cores
@given(**EPOCHS, drop_last=st.booleans())
def test_nothing_is_lost_or_repeated(seed, epoch, count, batch_size, ranks, drop_last):
    parts = whole_epoch(seed, epoch, count, batch_size, ranks, drop_last)
    number = batches_per_epoch(count, batch_size, ranks, drop_last)
    assert {len(part) for part in parts} == {number}
    seen = np.concatenate([np.empty(0, np.int64), *(b for part in parts for b in part)])
    assert len(np.unique(seen)) == len(seen)
    assert seen.dtype == np.int64
    if drop_last:
        assert all(len(batch) == batch_size for part in parts for batch in part)
        assert len(seen) == count - count % (batch_size * ranks)
    else:
        np.testing.assert_array_equal(np.sort(seen), np.arange(count))
        for step in zip(*parts, strict=True):
            sizes = [len(batch) for batch in step]
            assert max(sizes) - min(sizes) <= 1
            assert max(sizes) <= batch_size


@settings(deadline=None)  # other processes may hold the cores
@given(**EPOCHS, drop_last=st.booleans(), smaller=st.integers(1, 6))
def test_global_batches_do_not_depend_on_the_ranks(
    seed, epoch, count, batch_size, ranks, drop_last, smaller
):
    together = whole_epoch(seed, epoch, count, batch_size * ranks * smaller, 1, drop_last)[0]
    for split in (ranks, ranks * smaller):
        parts = whole_epoch(
            seed, epoch, count, batch_size * ranks * smaller // split, split, drop_last
        )
        for whole, *step in zip(together, *parts, strict=True):
            np.testing.assert_array_equal(np.concatenate(step), whole)


@settings(deadline=None)  # other processes may hold the cores
@given(**EPOCHS, drop_last=st.booleans(), data=st.data())
def test_starting_later_is_skipping(seed, epoch, count, batch_size, ranks, drop_last, data):
    rank = data.draw(st.integers(0, ranks - 1))
    number = batches_per_epoch(count, batch_size, ranks, drop_last)
    start = data.draw(st.integers(0, number))
    arguments = (seed, epoch, count, batch_size, Shard(rank, ranks), drop_last)
    late, whole = list(batches(*arguments, start=start)), list(batches(*arguments))
    assert len(late) == number - start
    for a, b in zip(late, whole[start:], strict=True):
        np.testing.assert_array_equal(a, b)


def test_batches_follow_the_order():
    whole = order(3, 4, 23)
    rows = list(batches(3, 4, 23, 4, Shard(1, 2)))
    np.testing.assert_array_equal(rows, [whole[4:8], whole[12:16]])
    last = [list(batches(3, 4, 23, 4, Shard(r, 2), drop_last=False))[-1] for r in (0, 1)]
    np.testing.assert_array_equal(last[0], whole[16:19])
    np.testing.assert_array_equal(last[1], whole[19:23])


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"batch_size": 0}, "batch_size"),
        ({"shard": Shard(2, 2)}, "rank"),
        ({"shard": Shard(-1, 2)}, "rank"),
        ({"shard": Shard(0, 0)}, "ranks"),
        ({"start": 4}, "start"),
        ({"start": -1}, "start"),
        ({"count": -1}, "count"),
        ({"seed": -1}, "seed"),
        ({"epoch": 2**32}, "epoch"),
    ],
)
def test_impossible_batches_are_refused_at_the_call(wrong, message):
    right = {"seed": 0, "epoch": 0, "count": 30, "batch_size": 10}
    assert len(list(batches(**right))) == 3
    with pytest.raises(ValueError, match=message):
        batches(**{**right, **wrong})


def test_a_position_is_plain_and_checked():
    assert Position(2, 5) == Position(epoch=2, batch=5)
    for wrong in ({"epoch": -1}, {"epoch": 2**32}, {"batch": -1}):
        with pytest.raises(ValueError, match=next(iter(wrong))):
            Position(**wrong)
