"""Reports of a run: a progress bar, logs for programs and for TensorBoard, and at the end figures
and a page.

This module needs torch alone; `progress` needs rich, `figures` matplotlib, `page` jinja2.
"""

from .finishing import Report, report_run
from .lines import JsonLinesLog
from .tensorboard_log import TensorBoardLog, why_no_tensorboard
from .trackers import MlflowLog, Tracker, WandbLog

__all__ = [
    "JsonLinesLog",
    "MlflowLog",
    "Report",
    "TensorBoardLog",
    "Tracker",
    "WandbLog",
    "report_run",
    "why_no_tensorboard",
]
