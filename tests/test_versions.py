"""The versions that are supported: stated the same everywhere, and `make test-versions` itself."""

from __future__ import annotations

import os
import re
import sys
from pathlib import Path

import pytest
import torch
import versions
import yaml
from versions import MATRIX, Failure, Row

from barlow_fast.kernels import why_unusable

ROOT = Path(__file__).resolve().parents[1]
PYPROJECT = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
DOCUMENT = (ROOT / "docs" / "support.md").read_text(encoding="utf-8")
PYTHONS = sorted({row.python for row in MATRIX}, key=versions.numbers)
OLDEST, NEWEST = MATRIX[0], MATRIX[-1]
MISSING = Row("2.15.0", "3.9.0", "3.99", "3.10")
MINOR = f"{sys.version_info[0]}.{sys.version_info[1]}"


def minor(version: str) -> str:
    return ".".join(version.split(".")[:2])


def test_the_table_is_in_order_and_reaches_every_python():
    assert list(MATRIX) == sorted(MATRIX, key=lambda row: versions.numbers(row.torch))
    classified = re.findall(r'"Programming Language :: Python :: (3\.\d+)"', PYPROJECT)
    assert classified == PYTHONS
    for row in MATRIX:
        assert versions.numbers(row.oldest_python) <= versions.numbers(row.python), row


def test_metadata_requests_the_oldest_that_is_run():
    assert f'requires-python = ">={PYTHONS[0]}"' in PYPROJECT
    assert f'dependencies = ["torch>={minor(OLDEST.torch)}"]' in PYPROJECT
    assert set(re.findall(r'"torch>=([\d.]+)"', PYPROJECT)) == {minor(OLDEST.torch)}
    assert re.findall(r'"triton>=([\d.]+);', PYPROJECT) == [minor(OLDEST.triton)]
    tests = re.search(r"^test = \[(.*)\]$", PYPROJECT, re.M)[1]
    assert set(versions.TOOLS) <= set(re.findall(r'"([^"]+)"', tests))


def test_the_documentation_has_the_same_table():
    section = DOCUMENT.partition("## Versions\n")[2].partition("\n## ")[0]
    rows = re.findall(
        r"^\| ([\d.]+) \| ([\d.]+) \| ([\d.]+) \| ([\d.]+) to ([\d.]+) \|$", section, re.M
    )
    assert rows == [
        (row.torch, row.triton, row.python, row.oldest_python, PYTHONS[-1]) for row in MATRIX
    ]


def jobs(workflow: str) -> dict:
    path = ROOT / ".github" / "workflows" / workflow
    return yaml.safe_load(path.read_text(encoding="utf-8"))["jobs"]


def combinations(job: dict) -> list[dict]:
    return job["strategy"]["matrix"]["include"]


def test_workflows_run_the_table_and_ask_for_nothing_that_does_not_exist():
    ci = jobs("ci.yml")
    assert [(c["torch"], c["python"]) for c in combinations(ci["versions"])] == [
        (row.torch, row.python) for row in MATRIX
    ]
    assert {c["python"] for c in combinations(ci["test"])} == set(PYTHONS)
    oldest_python = {row.torch: row.oldest_python for row in MATRIX}
    for job in (ci["wheel-test"], jobs("release.yml")["test"]):
        assert {c["torch"] for c in combinations(job)} == {OLDEST.torch, NEWEST.torch}
        for c in combinations(job):
            assert c["python"] in PYTHONS
            assert versions.numbers(oldest_python[c["torch"]]) <= versions.numbers(c["python"]), c
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    assert f"WHEEL_TORCH ?= {OLDEST.torch} {NEWEST.torch}\n" in makefile


def test_selection():
    assert versions.selected([]) == list(MATRIX)
    assert versions.selected(["newest", "oldest", OLDEST.torch]) == [OLDEST, NEWEST]
    with pytest.raises(SystemExit, match=r"VERSIONS: 2\.9 is none of"):
        versions.selected(["2.9"])


def test_a_python_that_is_missing_is_replaced_and_said_so():
    assert versions.find_python(MISSING) == (sys.executable, MINOR)
    result = versions.Result(MISSING, MINOR, "loss", "3 passed", 1.0, False)
    assert f"{MINOR} (no 3.99 here)" in versions.table([result])


def test_a_python_that_torch_has_no_wheel_for_is_refused():
    row = MISSING._replace(oldest_python="3.98")
    with pytest.raises(Failure, match=r"install Python 3\.99"):
        versions.find_python(row)
    (result,) = versions.run_rows([row], versions.TIERS, 1)
    assert result.failed
    assert "FAILED: no Python 3.99 here" in versions.table([result])


@pytest.fixture
def installations(monkeypatch, tmp_path) -> list[tuple[list[str], dict[str, str]]]:
    """What would have been installed, in place of doing it."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    done = []

    def run(command, environment):
        command = [str(part) for part in command]
        if "venv" in command:
            Path(command[-1]).mkdir()
        else:
            done.append((command, dict(environment)))

    monkeypatch.setattr(versions, "run", run)
    return done


def test_an_environment_is_installed_once_for_its_requirements(installations, monkeypatch):
    def python():
        return versions.environment_of(OLDEST, sys.executable, MINOR)

    first = python()
    assert python() == first
    ((command, environment),) = installations
    assert {f"torch=={OLDEST.torch}", "numpy<2.4", *versions.TOOLS} <= set(command)
    assert environment["PIP_CONSTRAINT"] == os.devnull
    monkeypatch.setattr(versions, "TOOLS", (*versions.TOOLS, "attrs"))
    assert python() != first
    assert len(installations) == 2


def test_an_interrupted_installation_leaves_nothing(installations, monkeypatch):
    create = versions.run

    def run(command, environment):
        create(command, environment)
        if installations:
            raise KeyboardInterrupt

    monkeypatch.setattr(versions, "run", run)
    with pytest.raises(KeyboardInterrupt):
        versions.environment_of(OLDEST, sys.executable, MINOR)
    assert list(versions.cache().iterdir()) == []


@pytest.fixture(scope="module")
def found() -> dict:
    """What the environment of these tests is found to be."""
    pytest.importorskip("triton")
    return versions.probe(sys.executable)


def test_an_environment_is_held_to_its_row_and_to_the_clone(found):
    import triton

    row = OLDEST._replace(torch=torch.__version__.split("+")[0], triton=triton.__version__)
    assert found["native"] == why_unusable("cpu", torch.device("cpu"))
    good = found | {"native": None}
    versions.check(good, row, MINOR)
    for changes, reason in (
        ({"python": "3.99"}, rf"python is 3\.99, not {MINOR}"),
        ({"torch": "2.9.1"}, r"torch is 2\.9\.1, not"),
        ({"triton": "3.5.1"}, r"triton is 3\.5\.1, not"),
        ({"sources": [found["sources"][0], "/elsewhere/__init__.py"]}, "not imported from this"),
        ({"native": "not built"}, "the native library does not load: not built"),
    ):
        with pytest.raises(Failure, match=reason):
            versions.check(good | changes, row, MINOR)


@pytest.mark.parametrize(
    ("body", "outcome", "failed"),
    [
        ("assert True", "1 passed, 0 failed, 0 skipped", False),
        ("assert False", "0 passed, 1 failed, 0 skipped", True),
        ("pytest.skip('no device')", "0 passed, 0 failed, 1 skipped", True),
        (None, "0 passed, 0 failed, 0 skipped", True),
    ],
)
def test_a_tier_that_fails_or_runs_nothing_is_a_failure(tmp_path, body, outcome, failed):
    test = tmp_path / "test_it.py"
    text = "import pytest\n"
    if body is not None:
        text += f"def test_it():\n    {body}\n"
    test.write_text(text)
    (tmp_path / "pytest.ini").touch()
    arguments = (str(test), "--rootdir", str(tmp_path), "-c", str(tmp_path / "pytest.ini"))
    tier = versions.Tier("loss", arguments, {"PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"})
    (result,) = versions.run_tiers([(OLDEST, MINOR, [sys.executable], tier)], 1)
    assert (result.outcome, result.failed) == (outcome, failed)
