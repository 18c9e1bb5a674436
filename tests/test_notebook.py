"""The notebooks of examples/ run from top to bottom, and hold no outputs that could be stale."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

EXAMPLES = Path(__file__).resolve().parents[1] / "examples"
NOTEBOOKS = sorted(EXAMPLES.glob("*.ipynb"))


def cells(path: Path) -> list[dict[str, Any]]:
    return json.loads(path.read_text(encoding="utf-8"))["cells"]


def run(path: Path) -> dict[str, Any]:
    """The names after its last cell."""
    names: dict[str, Any] = {"__name__": "__main__"}
    for cell in cells(path):
        if cell["cell_type"] == "code":
            exec(compile("".join(cell["source"]), f"{path.name}#{cell['id']}", "exec"), names)
    return names


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_notebooks_are_well_formed_and_hold_no_outputs(path: Path):
    notebook = json.loads(path.read_text(encoding="utf-8"))
    assert (notebook["nbformat"], notebook["nbformat_minor"]) == (4, 5)
    identifiers = [cell["id"] for cell in cells(path)]
    assert len(set(identifiers)) == len(identifiers)
    for cell in cells(path):
        of_code = {"execution_count", "outputs"} if cell["cell_type"] == "code" else set()
        assert set(cell) == {"cell_type", "id", "metadata", "source"} | of_code, cell["id"]
        assert not cell.get("outputs")
        assert cell.get("execution_count") is None
    first = cells(path)[0]
    assert first["cell_type"] == "markdown"
    assert first["source"][0].startswith("# ")


@pytest.mark.slow
def test_first_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys):
    pyplot = pytest.importorskip("matplotlib.pyplot")
    pyplot.switch_backend("agg")
    monkeypatch.chdir(tmp_path)
    names = run(EXAMPLES / "first_run.ipynb")
    pyplot.close("all")
    assert names["after"] > names["before"] + 0.015
    assert names["features"].shape == (128, names["loaded"].features)
    before, after = names["matrices"].values()
    assert after.diagonal().mean() > before.diagonal().mean() + 0.3
    assert "nearest neighbours: " in capsys.readouterr().out
