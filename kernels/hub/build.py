"""Builds the loss for Hugging Face's Kernel Hub: `make hub-kernel`, or

    python kernels/hub/build.py build/hub-kernel/barlow-fast

The folder is the content of a repository of the Hub, and what `kernels.get_local_kernel` loads. Its
one variant, `torch-universal`, is Python alone: `entry.py` and every module that it reaches by
relative imports, without the native kernels. A build is named after a hash of these sources. It is
imported by that name, which is the namespace of its operators too.
"""

from __future__ import annotations

import ast
import hashlib
import json
import re
import shutil
import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
VARIANT = "torch-universal"
VERSION = 1  # of the Hub: a branch v1 there; another number breaks what users of this one call
LEFT_OUT = ("kernels", "cpu")

Module = tuple[str, ...]


def source_of(module: Module) -> Path | None:
    """The file of a module of the build; None where there is no such module."""
    if module == ():
        return HERE / "entry.py"
    if module[:2] == LEFT_OUT:
        return None
    path = ROOT.joinpath(*([] if module[0] == "kernels" else ["barlow_fast"]), *module)
    files = (path / "__init__.py", path.with_name(f"{path.name}.py"))
    return next((file for file in files if file.is_file()), None)


def is_package(module: Module) -> bool:
    return module == () or source_of(module).name == "__init__.py"


def imported_by(module: Module) -> set[Module]:
    """Modules of the build that a module imports, with the packages that they are in."""
    package = module if is_package(module) else module[:-1]
    found: set[Module] = set()
    for node in ast.walk(ast.parse(source_of(module).read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and node.level:
            base = package[: len(package) - node.level + 1]
            base += tuple(node.module.split(".")) if node.module else ()
            for name in (base, *((*base, alias.name) for alias in node.names)):
                found |= {name[:length] for length in range(len(name) + 1)}
    return {name for name in found if source_of(name) is not None}


def reached() -> list[Module]:
    """All modules of the build."""
    found: set[Module] = set()
    waiting: list[Module] = [()]
    while waiting:
        module = waiting.pop()
        if module not in found:
            found.add(module)
            waiting += imported_by(module)
    return sorted(found)


def sources() -> dict[str, bytes]:
    """The variant's Python files by their paths."""
    files = {}
    for module in reached():
        path = (
            (*module, "__init__.py") if is_package(module) else (*module[:-1], f"{module[-1]}.py")
        )
        files["/".join(path)] = source_of(module).read_bytes()
    return files


def name_of(files: dict[str, bytes]) -> str:
    digest = hashlib.sha256()
    for path, content in sorted(files.items()):
        digest.update(f"{path}\0{len(content)}\0".encode() + content)
    return f"barlow_fast_{digest.hexdigest()[:12]}"


def build(folder: Path) -> str:
    """Writes the repository into `folder`, over a build that is there; the name of the build."""
    files = sources()
    identity = name_of(files)
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    url = re.search(r"^    git clone (\S+)$", readme, re.M)[1]
    metadata = {
        "id": identity,
        "name": "barlow-fast",
        "version": VERSION,
        "kernels-minver": "0.17.0",
        "license": "MIT",
        "upstream": url,
        "python-depends": [],
        "backend": {"type": "cuda"},  # required, of a universal variant too
    }
    package = (ROOT / "barlow_fast" / "__init__.py").read_text(encoding="utf-8")
    card = (
        (HERE / "card.md")
        .read_text(encoding="utf-8")
        .format(
            identity=identity,
            version=VERSION,
            package_version=re.search(r'^__version__ = "(.+)"$', package, re.M)[1],
            url=url,
        )
    )
    shutil.rmtree(folder / "build" / VARIANT, ignore_errors=True)
    files["metadata.json"] = json.dumps(metadata, indent=2).encode() + b"\n"
    for path, content in files.items():
        target = folder / "build" / VARIANT / path
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(content)
    (folder / "README.md").write_text(card, encoding="utf-8")
    shutil.copy2(ROOT / "LICENSE", folder / "LICENSE")
    return identity


if __name__ == "__main__":
    build(Path(sys.argv[1]))
