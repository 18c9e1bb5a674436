"""Ranks that stop, or never come: the others end with an error, within the group's timeout.

Each test has processes of its own, which it may end.
"""

from __future__ import annotations

import datetime
import os
import signal
import time

import pytest
import torch
import torch.distributed as dist
from ranks import in_processes, join
from whole import LAYOUTS

from barlow_fast import barlow_twins_loss

TIMEOUT = 5.0  # of the group that computes; the tests' own deadline is far beyond
LIMIT = 90.0
WORDS = "an exchange between the ranks of process_group failed"


def attempt(rank, size, store, victim, moment, layout):
    """(text of the error, seconds until it came) of the ranks that live on.

    What the victim does at `moment` is over for the others when they are told so: a rank that has
    been killed has ended, one that sleeps goes on until they are done.
    """
    # Starting takes longer than the timeout that is tested.
    join(rank, size, store, datetime.timedelta(seconds=60))
    group = dist.new_group(timeout=datetime.timedelta(seconds=TIMEOUT))
    z_a, z_b = (torch.randn(6, 40, requires_grad=True) for _ in range(2))
    barlow_twins_loss(z_a, z_b, process_group=group, layout=layout).backward()
    before = time.monotonic()
    try:
        if rank == victim and moment == "before the loss":
            os.kill(os.getpid(), signal.SIGKILL)
        if rank == victim and moment == "never calls":
            time.sleep(TIMEOUT + 3)
            return None
        loss = barlow_twins_loss(z_a, z_b, process_group=group, layout=layout)
        if rank == victim and moment == "before backward":
            os.kill(os.getpid(), signal.SIGKILL)
        if rank == victim and moment == "never goes backward":
            time.sleep(TIMEOUT + 3)
            return None
        loss.backward()
    except RuntimeError as error:
        return str(error), time.monotonic() - before
    return "no error", time.monotonic() - before


@pytest.mark.parametrize(
    ("moment", "layout", "victim"),
    [
        ("before the loss", "features", 2),
        ("before backward", "features", 0),
        ("before backward", "rows", 1),
        ("before backward", "correlation", 2),
        ("never calls", "features", 0),
        ("never goes backward", "correlation", 1),
    ],
)
def test_a_rank_stops(moment, layout, victim, tmp_path):
    assert layout in LAYOUTS
    outcomes = in_processes(attempt, 3, victim, moment, layout, limit=LIMIT, folder=tmp_path)
    killed = moment.startswith("before")
    for rank, (outcome, code) in enumerate(outcomes):
        if rank == victim:
            assert outcome is None
            assert code == (-signal.SIGKILL if killed else 0)
            continue
        assert code == 0
        text, seconds = outcome
        assert WORDS in text
        # A rank that has gone is noticed when its connections close, whatever the timeout.
        assert seconds < TIMEOUT + 5
