"""A pytest plugin: appends the outcome of every test to the file TEST_OUTCOMES, leaves out those
that it holds already, and ends the process when a test has broken the CUDA context, in which all
later ones would fail. With pytest-xdist that process is a worker, which is replaced."""

from __future__ import annotations

import importlib.util
import json
import os
import re
import sys
from pathlib import Path
from typing import Any

import pytest

from bench import exits
from bench.state import STOPPED, read_lines

PASSED, NOT_RUN, BAD = "passed", "skipped", "failed"
NO_MODULE = re.compile(r"No module named '(\w+)")


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    # All workers must collect the same tests: what has ended meanwhile does not count.
    known = set(os.environ["FINISHED_TESTS"].splitlines())
    config.hook.pytest_deselected(items=[item for item in items if item.nodeid in known])
    items[:] = [item for item in items if item.nodeid not in known]


def pytest_configure(config: pytest.Config) -> None:
    if not hasattr(config, "workerinput"):  # a worker reports to the process that started it
        config.pluginmanager.register(Outcomes())
        known = (entry["test"] for entry in read_lines(Path(os.environ["TEST_OUTCOMES"])))
        os.environ["FINISHED_TESTS"] = "\n".join(dict.fromkeys(known))


class Outcomes:
    """Writes each outcome at once: a later test may end the process. The last one of a test
    counts; one that is begun counts as failed until it ends."""

    def pytest_runtest_logstart(self, nodeid: str) -> None:
        _write(nodeid, BAD, STOPPED)

    def pytest_runtest_logreport(self, report: Any) -> None:
        if report.failed:
            lines = report.longreprtext.splitlines() or [""]
            named = (line[1:].strip() for line in lines if line.startswith("E "))
            _write(report.nodeid, BAD, next(named, lines[-1].strip()))
        elif report.skipped:
            reason = report.longrepr[2] if isinstance(report.longrepr, tuple) else "expected"
            _write(report.nodeid, NOT_RUN, reason)
        elif report.when == "call":
            _write(report.nodeid, PASSED, "")

    def pytest_collectreport(self, report: Any) -> None:
        missing = NO_MODULE.search(report.longreprtext) if report.failed else None
        if missing is not None and importlib.util.find_spec(missing[1]) is None:
            _write(report.nodeid, NOT_RUN, f"{missing[1]} is not installed")
        elif report.failed or report.skipped:
            self.pytest_runtest_logreport(report)


def _write(test: str, outcome: str, text: str) -> None:
    with Path(os.environ["TEST_OUTCOMES"]).open("a", encoding="utf-8") as file:
        file.write(json.dumps({"test": test, "outcome": outcome, "text": text}) + "\n")


def pytest_runtest_logfinish(nodeid: str) -> None:
    torch = sys.modules.get("torch")
    if torch is not None and torch.cuda.is_initialized():
        try:
            torch.cuda.synchronize()
        except RuntimeError as error:
            if "PYTEST_XDIST_WORKER" in os.environ:
                os._exit(exits.RESTART)
            pytest.exit(f"the CUDA context is broken: {error}".splitlines()[0], exits.RESTART)
