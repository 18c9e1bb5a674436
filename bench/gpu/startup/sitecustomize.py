"""Imports barlow_fast from the source tree in every Python that has this folder in PYTHONPATH.

`kernels/` is `barlow_fast.kernels` once installed; a finder does the same, ahead of everything that
may be installed. So nothing is built, installed or written, in no environment.
"""

from __future__ import annotations

import importlib.util
import sys
from importlib.machinery import ModuleSpec, PathFinder
from pathlib import Path

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[2]
FOLDERS = {"barlow_fast": ROOT / "barlow_fast", "barlow_fast.kernels": ROOT / "kernels"}


class SourceTree:
    """Finds the two packages; everything below them is found as usual."""

    @staticmethod
    def find_spec(name: str, path: object = None, target: object = None) -> ModuleSpec | None:
        """The package's own folder, None for any other name."""
        folder = FOLDERS.get(name)
        if folder is None:
            return None
        return importlib.util.spec_from_file_location(
            name, folder / "__init__.py", submodule_search_locations=[str(folder)]
        )


def run_hidden_one() -> None:
    """Runs the sitecustomize that this one hides, if the machine has one."""
    others = [entry for entry in sys.path if entry and Path(entry).resolve() != HERE]
    spec = PathFinder.find_spec("sitecustomize", others)
    if spec is not None and spec.loader is not None:
        spec.loader.exec_module(importlib.util.module_from_spec(spec))


sys.meta_path.insert(0, SourceTree)
run_hidden_one()
