"""`make test-arm`: what it selects, what it makes once, and what it says where it cannot run."""

from __future__ import annotations

import os
import platform
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import arm
import contract
import pytest
import torch
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


# Runs pytest as on an ARM machine: kernel sets and the plugin read the machine's name.
ON_ARM = """
import platform, sys
platform.machine = lambda: "aarch64"
import pytest
sys.exit(pytest.main(sys.argv[1:]))
"""


@contract.native
def test_every_primitive_is_selected_in_every_precision():
    options = ["-q", *arm.PYTEST, "--collect-only", "-p", "no:cacheprovider"]
    done = subprocess.run(
        [sys.executable, "-c", ON_ARM, *options, "tests/kernels/test_contract.py"],
        cwd=ROOT,
        env=os.environ | {"PYTHONPATH": str(ROOT / "tests")},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    found = [line.partition("::")[2] for line in done.stdout.splitlines() if "::" in line]
    assert not [name for name in found if "emulated" in name or "more_than_one_block[" in name]
    everywhere = {"fp64", "fp32", "bf16", "fp16"}
    most = everywhere - {"fp16"}
    for test, precisions in {
        "test_moments_and_standardisation": {"fp64", "fp32"},
        "test_every_input_type_with_every_operand_type": {*everywhere, "tf32"},
        "test_forms": most,
        "test_one_row": everywhere,
        "test_tiles": everywhere,
        "test_views": everywhere,
        "test_more_than_one_block_of_narrow_matrices": most,
    }.items():
        for kernels, wanted in (("neon", precisions), ("neon_bf16", precisions & {"bf16"})):
            names = [name for name in found if name.startswith(f"{test}[{kernels}-")]
            missing = {p for p in wanted if not any(p in name for name in names)}
            assert not missing, (test, kernels)


@pytest.mark.parametrize(
    ("given", "marks", "selected"),
    [
        ({}, (), True),
        ({}, ("large",), False),
        ({"backend": "aten"}, (), False),
        ({"kernels": "neon", "precision": "fp32"}, (), True),
        ({"kernels": "neon_bf16", "precision": "fp32"}, (), False),
        ({"kernels": "neon_bf16", "precision": "fp32", "dtype": torch.bfloat16}, (), True),
    ],
    ids=str,
)
def test_what_an_emulator_runs(given, marks, selected):
    item = SimpleNamespace(
        callspec=SimpleNamespace(params=given),
        get_closest_marker=lambda name: name if name in marks else None,
    )
    assert arm.is_selected(item) == selected


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
