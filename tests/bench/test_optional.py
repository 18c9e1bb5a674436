"""Without typer and rich."""

from __future__ import annotations

HIDDEN = "import sys; sys.modules['typer'] = sys.modules['rich'] = None\n"


def test_every_command_is_there_without_either(python):
    done = python("-c", HIDDEN + "from bench.__main__ import main\nmain(['loss', '--help'])")
    assert done.returncode == 0, done.stderr
    assert "--compiled-shapes" in done.stdout
