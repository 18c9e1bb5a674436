"""Fixtures of the tests of the bench."""

from __future__ import annotations

import subprocess
import sys
from types import SimpleNamespace

import pytest
import torch

from bench import exits, results, runner, sources


@pytest.fixture(autouse=True)
def small_peaks(monkeypatch):
    """Peaks of products and copies that take no time; nothing here depends on their size."""
    from bench import devices, floor

    monkeypatch.setattr(devices, "GEMM_SHAPES", ((64, 64, 64),))
    monkeypatch.setattr(devices, "COPY_MIB", (1,))
    monkeypatch.setattr(floor, "SECONDS", 0.01)
    monkeypatch.setattr(floor, "COPY_SECONDS", 0.01)


@pytest.fixture(autouse=True)
def one_thread():
    """On a busy machine two threads that wait for each other make tiny shapes take seconds."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture
def python():
    """(arguments, ...) -> a Python that has ended, run from the root of the tree."""

    def run(*arguments, **options):
        command = [sys.executable, *map(str, arguments)]
        given = {"cwd": sources.ROOT, "capture_output": True, "text": True} | options
        return subprocess.run(command, **given)

    return run


@pytest.fixture
def suites_run(monkeypatch):
    """Commands of suites that would have been run, in as many seconds, with their journal; `ends`
    is their exit status."""
    seen = SimpleNamespace(commands=[], given=[], ends=exits.COMPLETE)

    def persevere(command, log, seconds, journal):
        seen.commands.append(command(seconds)[3:])
        seen.given.append((seconds, journal))
        return seen.ends

    monkeypatch.setattr(runner, "persevere", persevere)
    return seen


@pytest.fixture
def measure(tmp_path, capsys):
    """(peers, cases, device, ...) -> (session, rows, what was printed) of the suite loss."""
    from bench.devices import Cpu
    from bench.session import Given, Session
    from bench.suites import loss
    from bench.timing import Budget

    def run(peers, cases, device=None, compiled=None, longest=15.0, **given):
        given = Given(out=tmp_path / "rows.jsonl", **given)
        session = Session(device or Cpu(), given)
        loss.measure(session, cases, peers, loss.Settings(Budget(repeats=2), longest, compiled))
        return session, results.read(given.out), capsys.readouterr().out

    return run
