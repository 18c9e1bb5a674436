"""Ranks that stop, or never come: the others end with an error, within the group's timeout.

Each test has processes of its own, which it may end.
"""

from __future__ import annotations

import datetime
import os
import signal

import pytest
import torch
import torch.distributed as dist
from ended import SECONDS
from ranks import in_processes, join
from whole import LAYOUTS

from barlow_fast import barlow_twins_loss

TIMEOUT = 5.0  # of the group that waits in vain
WORDS = "an exchange between the ranks of process_group failed"


def attempt(rank, size, store, victim, moment, layout):
    """The text of the error of the ranks that live on.

    A rank that has been killed is noticed when its connections close, long before any timeout. One
    that does not come is waited for until then: it waits itself until the others have given up.
    """
    long = datetime.timedelta(seconds=SECONDS)
    join(rank, size, store, long)
    killed = moment.startswith("before")
    group = dist.new_group(timeout=long if killed else datetime.timedelta(seconds=TIMEOUT))
    z_a, z_b = (torch.randn(6, 40, requires_grad=True) for _ in range(2))
    # Starting may take longer than the timeout that is tested.
    barlow_twins_loss(z_a, z_b, process_group="world", layout=layout).backward()
    dist.barrier()
    try:
        if rank == victim and moment == "before the loss":
            os.kill(os.getpid(), signal.SIGKILL)
        if rank == victim and moment == "never calls":
            return dist.barrier()
        loss = barlow_twins_loss(z_a, z_b, process_group=group, layout=layout)
        if rank == victim and moment == "before backward":
            os.kill(os.getpid(), signal.SIGKILL)
        if rank == victim and moment == "never goes backward":
            return dist.barrier()
        loss.backward()
    except RuntimeError as error:
        if not killed:
            dist.barrier()
        return str(error)
    return "no error"


@pytest.mark.parametrize(
    ("moment", "layout", "victim"),
    [
        ("before the loss", "features", 2),
        pytest.param(*("before backward", "features", 0), marks=pytest.mark.slow),
        pytest.param(*("before backward", "rows", 1), marks=pytest.mark.slow),
        ("before backward", "correlation", 2),
        ("never calls", "features", 0),
        pytest.param(*("never goes backward", "correlation", 1), marks=pytest.mark.slow),
    ],
)
def test_a_rank_stops(moment, layout, victim, tmp_path):
    assert layout in LAYOUTS
    outcomes = in_processes(attempt, 3, victim, moment, layout, limit=SECONDS, folder=tmp_path)
    killed = moment.startswith("before")
    for rank, (outcome, code) in enumerate(outcomes):
        if rank == victim:
            assert outcome is None
            assert code == (-signal.SIGKILL if killed else 0)
            continue
        assert code == 0
        assert WORDS in outcome
