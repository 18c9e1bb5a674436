"""The native library can be built beside this torch: only the bindings include torch's headers."""

from __future__ import annotations

import os
import re
import shlex
import shutil
import subprocess
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).resolve().parents[2]


def test_the_bindings_compile_with_the_headers_of_this_torch():
    compiler = shlex.split(os.environ.get("CXX", "c++"))
    if shutil.which(compiler[0]) is None:
        pytest.skip(f"no C++ compiler: {compiler[0]}")
    target = re.search(r"TORCH_TARGET_VERSION=\w+", (ROOT / "CMakeLists.txt").read_text())[0]
    include = Path(torch.__file__).parent / "include"
    command = [*compiler, "-std=c++17", "-fsyntax-only", f"-D{target}", "-isystem", str(include)]
    source = ROOT / "kernels" / "cpu" / "bindings.cpp"
    done = subprocess.run([*command, str(source)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
