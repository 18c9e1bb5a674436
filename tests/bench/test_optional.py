"""Without typer and rich, and how tables are printed."""

from __future__ import annotations

from bench.console import aligned

HIDDEN = "import sys; sys.modules['typer'] = sys.modules['rich'] = None\n"


def test_columns_of_numbers_are_aligned_to_the_right():
    rows = [("official", "10.5", "–"), ("ours", "9", "")]
    assert aligned(("peer", "ms", "note"), rows).splitlines() == [
        "peer        ms  note",
        "official  10.5     –",
        "ours         9",
    ]


def test_every_command_is_there_without_either(python):
    done = python("-c", HIDDEN + "from bench.__main__ import main\nmain(['loss', '--help'])")
    assert done.returncode == 0, done.stderr
    assert "--compiled-shapes" in done.stdout
