"""Libraries that are measured where they are installed. Nothing is imported to find that out: some
of them take longer to import than to measure."""

from __future__ import annotations

import importlib.metadata
import importlib.util


def installed(module: str) -> bool:
    """Whether a module of this name can be found."""
    return importlib.util.find_spec(module) is not None


def why_missing(module: str, command: str) -> str | None:
    """None, or that the module is not installed and the `command` that changes it."""
    return None if installed(module) else f"{module} is not installed ({command})"


def version(distribution: str) -> str:
    """The installed version, empty where there is none."""
    try:
        return importlib.metadata.version(distribution)
    except importlib.metadata.PackageNotFoundError:
        return ""


def formula_reason(module: str, name: str) -> str | None:
    """Why a package's formula is left out: the real class is measured where there is one."""
    return f"{name} itself is installed" if installed(module) else None
