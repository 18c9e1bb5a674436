"""`make test-arm`: what it selects, what it makes once, and what it says where it cannot run."""

from __future__ import annotations

import platform
import sys
from pathlib import Path

import arm
import pytest
import versions
from versions import Failure

ROOT = Path(__file__).resolve().parents[1]
emulating = pytest.mark.skipif(
    sys.platform != "linux" or platform.machine() != "x86_64", reason="emulates on Linux on x86-64"
)


def test_what_is_selected_exists():
    for tier in arm.TIERS:
        for path in (path for path in tier.paths if path.startswith("tests/")):
            assert (ROOT / path.partition("::")[0]).is_file(), path
    for name in arm.SOURCES:
        assert (ROOT / name).exists(), name


def test_a_copy_has_no_library_of_this_machine(tmp_path):
    clone = arm.copied(tmp_path)
    assert (clone / "kernels" / "cpu" / "__init__.py").is_file()
    assert not list(clone.rglob("*.so"))


@pytest.fixture
def installed(monkeypatch, tmp_path) -> list[str]:
    """The commands that would have been run, in place of running them."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    commands = []

    def run(command, environment):
        commands.append(" ".join(map(str, command)))
        if "pip" in commands[-1]:
            assert environment["PIP_CONSTRAINT"] == "/dev/null"

    monkeypatch.setattr(versions, "run", run)
    monkeypatch.setattr(arm.shutil, "which", lambda name, path=None: f"/{name}")
    monkeypatch.setattr(arm.Environment, "version", "3.11")
    return commands


@emulating
def test_an_environment_is_made_once_for_its_requirements(installed, monkeypatch):
    first = arm.environment()
    count = len(installed)
    assert arm.environment().folder == first.folder
    assert len(installed) == count
    # Apt's own state stays in the folder, and nothing is installed.
    for command in installed:
        assert str(versions.cache("arm")) in command
        assert "install" not in command or "--download-only" in command or "--target" in command
    monkeypatch.setattr(arm, "WHEELS", (*arm.WHEELS, "attrs"))
    assert arm.environment().folder != first.folder


@emulating
def test_an_interrupted_one_leaves_nothing(installed, monkeypatch):
    def run(command, environment):
        raise KeyboardInterrupt

    monkeypatch.setattr(versions, "run", run)
    with pytest.raises(KeyboardInterrupt):
        arm.environment()
    assert list(versions.cache("arm").iterdir()) == []


@pytest.mark.parametrize(("arguments", "status"), [([], 1), (["--or-skip"], 0)])
def test_what_is_missing_is_said(arguments, status, monkeypatch, capsys):
    def environment():
        raise Failure("no apt-get here")

    monkeypatch.setattr(arm, "environment", environment)
    monkeypatch.setattr(arm.platform, "machine", lambda: "x86_64")
    monkeypatch.setattr(sys, "argv", ["arm.py", *arguments])
    monkeypatch.setattr(arm.signal, "signal", lambda *_: None)
    assert arm.main() == status
    assert capsys.readouterr().out == "ARM is not tested: no apt-get here\n"


@emulating
@pytest.mark.parametrize("name", ["apt-get", "dpkg"])
def test_a_system_without_debian_packages(name, monkeypatch):
    monkeypatch.setattr(
        arm.shutil, "which", lambda each, path=None: None if each == name else f"/{each}"
    )
    with pytest.raises(Failure, match=f"no {name} here"):
        arm.environment()
