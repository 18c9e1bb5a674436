"""A pytest plugin that can be killed at any moment and loses one test.

`-p bench.gpu.pytest_journal --journal FILE`: every finished test is a line of FILE, tests that are
finished there are not run again, and neither is one that ended an earlier process. After the last
second (`--stop-after`) no test is begun; after a broken CUDA context, neither: a new process
continues.
"""

from __future__ import annotations

import importlib.util
import time
from collections.abc import Generator
from pathlib import Path

import pytest

from bench import exits
from bench.state import Journal, finished, lost

OWN = ("barlow_fast", "bench", "kernels")  # not to be missing
TEXT = 2000  # characters of a failure that are kept


def pytest_addoption(parser: pytest.Parser) -> None:
    group = parser.getgroup("journal")
    group.addoption("--journal", type=Path, help="file of finished tests")
    group.addoption("--stop-after", type=float, help="seconds after which no test is begun")


def pytest_configure(config: pytest.Config) -> None:
    config.pluginmanager.register(Recorder(config), "journal-recorder")


class Recorder:
    """Writes the journal of one session."""

    def __init__(self, config: pytest.Config) -> None:
        self.path: Path | None = config.getoption("--journal")
        self.limit: float | None = config.getoption("--stop-after")
        self.start = time.monotonic()
        self.journal = Journal(self.path)
        self.restart = self.cut = False
        self.outcome, self.text, self.seconds = "passed", "", 0.0

    @pytest.hookimpl(trylast=True)
    def pytest_collection_modifyitems(
        self, config: pytest.Config, items: list[pytest.Item]
    ) -> None:
        """Leaves out what is finished and what ended a process."""
        known = finished(self.path) | lost(self.path)
        again = [item for item in items if item.nodeid in known]
        items[:] = [item for item in items if item.nodeid not in known]
        config.hook.pytest_deselected(items=again)

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_protocol(
        self, item: pytest.Item, nextitem: pytest.Item | None
    ) -> Generator[None, object, object]:
        """One test: begun, run, ended; and whether another one may begin."""
        self.outcome, self.text, self.seconds = "passed", "", 0.0
        self.journal.start(item.nodeid)
        result = yield
        problem = _broken_context() if self.outcome == "failed" else None
        self.journal.end(
            item.nodeid, outcome=self.outcome, seconds=round(self.seconds, 3), text=self.text
        )
        if problem is not None:
            self.restart = True
            item.session.shouldstop = f"the CUDA context is broken: {problem}"
        elif nextitem is not None and self._late():
            self.cut = True
            item.session.shouldstop = "time is up; the next run continues"
        return result

    @pytest.hookimpl(wrapper=True)
    def pytest_make_collect_report(
        self, collector: pytest.Collector
    ) -> Generator[None, pytest.CollectReport, pytest.CollectReport]:
        """A file that needs a library which this machine lacks is skipped, with that reason."""
        report = yield
        call = getattr(report, "call", None)
        error = call.excinfo.value if report.failed and call and call.excinfo else None
        cause = (
            error if isinstance(error, ModuleNotFoundError) else getattr(error, "__cause__", None)
        )
        if isinstance(cause, ModuleNotFoundError) and cause.name:
            package = cause.name.partition(".")[0]
            if package not in OWN and importlib.util.find_spec(package) is None:
                reason = f"{package} is not installed"
                report.outcome, report.longrepr = "skipped", (str(collector.path), 0, reason)
                self.journal.start(collector.nodeid)
                self.journal.end(collector.nodeid, outcome="skipped", seconds=0.0, text=reason)
        return report

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        """Keeps the worst of set-up, call and tear-down."""
        self.seconds += report.duration
        if report.failed:
            self.outcome, self.text = "failed", report.longreprtext[-TEXT:]
        elif report.skipped and self.outcome == "passed":
            reason = report.longrepr[-1] if isinstance(report.longrepr, tuple) else report.longrepr
            self.outcome, self.text = "skipped", str(reason)[-TEXT:]

    def pytest_sessionfinish(self, session: pytest.Session) -> None:
        """Signals the runner whether to start another process."""
        if self.restart:
            session.exitstatus = exits.RESTART
        elif self.cut:
            session.exitstatus = exits.UNFINISHED

    def _late(self) -> bool:
        return self.limit is not None and time.monotonic() - self.start > self.limit


def _broken_context() -> str | None:
    import torch

    if not torch.cuda.is_initialized():
        return None
    try:
        torch.cuda.synchronize()
    except RuntimeError as error:
        return str(error).splitlines()[0]
    return None
