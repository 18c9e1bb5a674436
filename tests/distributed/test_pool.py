"""The pool that all tests here rest on: a rank that fails or hangs fails the call, and ends."""

from __future__ import annotations

import os

import pytest
import torch
import torch.distributed as dist
from ended import SECONDS, alive
from ranks import Pool, RanksFailed


def greet(group, tensor, word):
    total = tensor * (group.rank() + 1)
    dist.all_reduce(total, group=group)
    return {"total": total, "pid": os.getpid(), "words": [word, (group.rank(), dist.get_rank())]}


def fail_on(group, rank):
    """The others wait for it."""
    if group.rank() == rank:
        raise KeyError("lost")
    dist.barrier(group=group)


def end_on(group, rank):
    if group.rank() == rank:
        os._exit(3)
    dist.barrier(group=group)


def wait_on(group, rank):
    if group.rank() == rank:
        dist.barrier()


def test_failures_end_all_processes_and_the_next_call_starts_new_ones():
    pool = Pool()
    try:
        results = pool.run(greet, (1, 3), torch.ones(2), "hello")
        for rank, result in enumerate(results):
            assert torch.equal(result["total"], torch.full((2,), 3.0))
            assert result["words"] == ["hello", (rank, (1, 3)[rank])]
        for function, limit, words in (
            # The others are not waited for: their barrier would still hold them for minutes.
            (fail_on, SECONDS, "rank 1:\nTraceback.*KeyError: 'lost'.*no answer in time"),
            (end_on, SECONDS, "rank 1:\nthe process has ended"),
            (wait_on, 1.0, "rank 1:\nno answer in time"),
        ):
            pids = [result["pid"] for result in pool.run(greet, 3, torch.ones(2), "again")]
            assert all(map(alive, pids))
            with pytest.raises(RanksFailed, match="(?s)" + words):
                pool.run(function, 3, 1, limit=limit)
            assert not any(map(alive, pids))
    finally:
        pool.close()
