"""A page per script of examples/: its docstring and its source. The chapter opens with
examples/README.md."""

import ast
import re
from pathlib import Path

from documents import ROOT, page_of_source, without_title
from mkdocs.structure.files import File

FOLDER = ROOT / "examples"


def scripts():
    """(file name, its page, what it shows in one line, the rest of the docstring, source)."""
    for path in sorted(FOLDER.glob("*.py")):
        source = path.read_text(encoding="utf-8")
        title, _, rest = (ast.get_docstring(ast.parse(source)) or path.name).partition("\n")
        yield path.name, f"examples/{path.stem}.md", title.strip(), rest.strip(), source


def opening():
    readme = FOLDER / "README.md"
    if readme.is_file():
        text = without_title(readme.read_text(encoding="utf-8"))
        known = {name for name, *_ in scripts()}

        def link(found):
            name = found[1]
            return f"[{found[0]}]({Path(name).stem}.md)" if name in known else found[0]

        def followed(found):
            """A link of the folder: to the script's page, or its words where there is no page."""
            name = found[2]
            return f"[{found[1]}]({Path(name).stem}.md)" if name in known else found[1]

        text = re.sub(r"\[([^\]]+)\]\((?!https?:|#)([^)]+)\)", followed, text)
        return re.sub(r"(?<!\[)`(\w+\.py)`(?!\])", link, text)
    rows = [f"| [`{name}`]({Path(page).name}) | {title} |" for name, page, title, *_ in scripts()]
    return "\n".join(["| script | what it shows |", "|---|---|", *rows])


def on_config(config):
    chapter = next(part["Migrating"] for part in config.nav if "Migrating" in part)
    pages = [{name: page} for name, page, *_ in scripts()]
    chapter.append({"Examples": [{"Overview": "examples/index.md"}, *pages]})
    return config


def on_files(files, config):
    page_of_source["examples/README.md"] = "examples/index.md"
    content = f"# Examples\n\n{opening()}\n"
    files.append(File.generated(config, "examples/index.md", content=content))
    for name, page, title, rest, source in scripts():
        page_of_source[f"examples/{name}"] = page
        content = f"# {name}\n\n{title}\n\n{rest}\n\n````{{.python}}\n{source}````\n"
        files.append(File.generated(config, page, content=content))
    return files
