"""Without typer and rich."""

from __future__ import annotations

import io
import subprocess
import sys

from bench.gpu import sources
from bench.optional import PlainConsole, PlainTable

HIDDEN = "import sys; sys.modules['typer'] = sys.modules['rich'] = None\n"


def run(code):
    command = [sys.executable, "-c", HIDDEN + code]
    return subprocess.run(command, cwd=sources.ROOT, capture_output=True, text=True)


def test_the_plain_console_drops_markup_and_keeps_the_rest():
    text = io.StringIO()
    PlainConsole(file=text, width=3).print("[bold red]wrong[/]: C[0] is [1.5]", "yes")
    assert text.getvalue() == "wrong: C[0] is [1.5] yes\n"


def test_the_plain_table_is_aligned():
    table = PlainTable(title="a title")
    for head in ("peer", "ms"):
        table.add_column(head, justify="right")
    table.add_row("official", "1")
    assert str(table).splitlines() == ["a title", "peer      ms", "official  1 "]


def test_the_suites_import_and_print_without_either():
    done = run(
        "from bench.suites import loss, memory\nimport bench.gpu.loss, bench.gpu.memory\n"
        "loss.console.print('[red]printed[/]')"
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout == "printed\n"


def test_the_command_line_says_what_it_needs():
    done = run("import bench.__main__")
    assert done.returncode == 1
    assert "needs typer" in done.stderr
