"""A reference page per public module: every name of its `__all__`, from the docstrings.

Public are the packages of barlow_fast that declare `__all__`, the adapters, and the modules of
`APART`. Modules are read, never imported, so the site needs no torch.
"""

import ast
import re

from documents import ROOT
from mkdocs.structure.files import File

# Each needs a library of its own, so no package imports them.
APART = {"checkpoints/hub.py", "training/lightning.py"}


def public_modules():
    """Dotted name -> (names in `__all__`, module docstring), in alphabetical order."""
    found = {}
    for path in sorted((ROOT / "barlow_fast").rglob("*.py")):
        package = path.name == "__init__.py"
        apart = path.relative_to(ROOT / "barlow_fast").as_posix() in APART
        if not package and not apart and path.parent.name != "adapters":
            continue
        tree = ast.parse(path.read_text(encoding="utf-8"))
        names = declared(tree)
        if names:
            parts = path.relative_to(ROOT).with_suffix("").parts
            module = ".".join(parts[:-1] if package else parts)
            found[module] = (names, ast.get_docstring(tree) or "")
    return found


def declared(tree):
    for statement in tree.body:
        if isinstance(statement, ast.Assign) and ast.unparse(statement.targets[0]) == "__all__":
            return ast.literal_eval(statement.value)
    return []


def page_of(module):
    return f"reference/{module}.md"


def on_config(config):
    chapter = next(part["Reference"] for part in config.nav if "Reference" in part)
    modules = list(public_modules())
    adapters = [name for name in modules if name.startswith("barlow_fast.adapters.")]
    chapter += [{name: page_of(name)} for name in modules if name not in adapters]
    chapter.append({"Adapters": [{name.split(".")[-1]: page_of(name)} for name in adapters]})
    return config


def on_files(files, config):
    rows = ["| module | names |", "|---|---|"]
    for module, (names, docstring) in public_modules().items():
        listed = ", ".join(f"[`{name}`][{module}.{name}]" for name in names)
        rows.append(f"| [`{module}`]({module}.md) | {listed} |")
        body = "\n\n".join(f"::: {module}.{name}" for name in names)
        # Headings inside a module's docstring must not compete with the names below.
        text = re.sub(r"^(#+ )", r"##\1", docstring, flags=re.M)
        files.append(
            File.generated(config, page_of(module), content=f"# {module}\n\n{text}\n\n{body}\n")
        )
    content = "# Reference\n\nEvery public name, from the docstrings.\n\n" + "\n".join(rows) + "\n"
    files.append(File.generated(config, "reference/index.md", content=content))
    return files
