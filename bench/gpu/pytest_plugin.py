"""A pytest plugin: leaves out tests that are listed in the file FINISHED_TESTS, shows failures at
once, and ends the process when a test has broken the CUDA context, in which all later ones would
fail."""

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


def pytest_exception_interact(node: pytest.Item | pytest.Collector, report: Any) -> None:
    """Shows a failure at once: a later test may end the process."""
    lines = report.longreprtext.splitlines()
    reason = next((line[1:].strip() for line in lines if line.startswith("E ")), "")
    terminal = node.config.pluginmanager.get_plugin("terminalreporter")
    terminal.write_line(f"\n{report.longreprtext}\nFAILED {node.nodeid} - {reason}")


def pytest_runtest_logfinish(nodeid: str) -> None:
    torch = sys.modules.get("torch")
    if torch is not None and torch.cuda.is_initialized():
        try:
            torch.cuda.synchronize()
        except RuntimeError as error:
            pytest.exit(f"the CUDA context is broken: {error}".splitlines()[0], exits.RESTART)
