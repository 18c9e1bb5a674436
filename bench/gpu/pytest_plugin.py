"""A pytest plugin: leaves out tests that are listed in the file FINISHED_TESTS, shows failures at
once, and ends the process when a test has broken the CUDA context, in which all later ones would
fail. With pytest-xdist that process is a worker, which is replaced."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any

import pytest

from bench import exits


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    finished = set(Path(os.environ["FINISHED_TESTS"]).read_text(encoding="utf-8").splitlines())
    config.hook.pytest_deselected(items=[item for item in items if item.nodeid in finished])
    items[:] = [item for item in items if item.nodeid not in finished]


def pytest_configure(config: pytest.Config) -> None:
    if not hasattr(config, "workerinput"):  # a worker has nowhere to show them
        config.pluginmanager.register(Reasons(config))


class Reasons:
    """Shows why a test failed or was skipped, at once: a later test may end the process."""

    def __init__(self, config: pytest.Config) -> None:
        self.config = config

    def pytest_runtest_logreport(self, report: Any) -> None:
        terminal = self.config.pluginmanager.get_plugin("terminalreporter")
        if report.failed:
            lines = report.longreprtext.splitlines() or [""]
            named = (line[1:].strip() for line in lines if line.startswith("E "))
            reason = next(named, lines[-1].strip())
            terminal.write_line(f"\n{report.longreprtext}\nFAILED {report.nodeid} - {reason}")
        elif report.skipped and isinstance(report.longrepr, tuple):
            terminal.write_line(f"\nSKIPPED {report.nodeid} - {report.longrepr[2]}")

    pytest_collectreport = pytest_runtest_logreport


def pytest_runtest_logfinish(nodeid: str) -> None:
    torch = sys.modules.get("torch")
    if torch is not None and torch.cuda.is_initialized():
        try:
            torch.cuda.synchronize()
        except RuntimeError as error:
            if "PYTEST_XDIST_WORKER" in os.environ:
                os._exit(exits.RESTART)
            pytest.exit(f"the CUDA context is broken: {error}".splitlines()[0], exits.RESTART)
