"""Traces the processes that a traced test starts; found because this folder is on PYTHONPATH."""

import os

if "BARLOW_FAST_TRACE" in os.environ:
    import process_tracing

    process_tracing.start()
