"""The build never breaks an install: without a compiler it reports that and continues."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from ended import completed

ROOT = Path(__file__).resolve().parent.parent
NO_COMPILER = {"CXX": "/nonexistent/c++"}


def build(target: Path, **variables: str) -> subprocess.CompletedProcess:
    command = [sys.executable, "setup.py", "-q", "build_native", "--build-lib", target]
    return completed(*command, cwd=ROOT, **variables)


def note(target: Path) -> str:
    return (target / "barlow_fast" / "kernels" / "cpu" / "native_build.txt").read_text()


def test_without_a_compiler_the_build_succeeds_and_says_why(tmp_path):
    done = build(tmp_path, **NO_COMPILER)
    assert done.returncode == 0
    assert note(tmp_path) == "no working C++ compiler found\n"
    assert "installing without native CPU kernels" in done.stderr
    assert not list(tmp_path.rglob("*.so"))


def test_required_kernels_that_do_not_build_are_an_error(tmp_path):
    done = build(tmp_path, BARLOW_FAST_NATIVE="require", **NO_COMPILER)
    assert done.returncode != 0
    assert "no working C++ compiler found" in done.stderr


def test_skipping_leaves_no_stale_library(tmp_path):
    folder = tmp_path / "barlow_fast" / "kernels" / "cpu"
    folder.mkdir(parents=True)
    stale = folder / "libbarlow_fast_cpu.so"
    stale.write_bytes(b"old")
    assert build(tmp_path, BARLOW_FAST_NATIVE="skip").returncode == 0
    assert not stale.exists()
    assert "skipped" in note(tmp_path)


def test_kernels_do_not_install_as_a_top_level_package():
    """Hugging Face's package of that name may be installed."""
    code = (
        "from importlib.util import find_spec; print(getattr(find_spec('kernels'), 'origin', ''))"
    )
    done = completed(sys.executable, "-c", code, cwd="/")
    assert done.returncode == 0, done.stderr
    assert str(ROOT) not in done.stdout.replace(str(ROOT / ".venv"), "")


def test_the_library_binds_to_the_stable_interface_only():
    """No C++ symbol of torch is needed: that is what lets one file serve every torch."""
    from barlow_fast.kernels import cpu

    libraries = list(cpu.FOLDER.glob("*.so"))
    if not libraries:
        pytest.skip("the native CPU kernels were not built")
    nm = completed("nm", "-D", "--undefined-only", libraries[0])
    if nm.returncode:
        pytest.skip("nm is not available")
    needed = {line.split()[-1] for line in nm.stdout.splitlines()}
    assert any(name.startswith(("torch_", "aoti_torch_")) for name in needed)
    assert not {n for n in needed if n.startswith(("_ZN2at", "_ZN3c10", "_ZN5torch", "_ZNK2at"))}
