"""A page per script of examples/, its docstring and its source, and per notebook, its cells. The
chapter opens with examples/README.md."""

import ast
import json
import re
from pathlib import Path

from documents import ROOT, page_of_source, without_title
from mkdocs.structure.files import File

FOLDER = ROOT / "examples"


def pages():
    """(file name, its page, what it shows in one line, the page's text below its heading)."""
    for path in sorted(FOLDER.glob("*.py")):
        source = path.read_text(encoding="utf-8")
        title, _, rest = (ast.get_docstring(ast.parse(source)) or path.name).partition("\n")
        text = f"{title.strip()}\n\n{rest.strip()}\n\n{block(source)}"
        yield path.name, f"examples/{path.stem}.md", title.strip(), text
    for path in sorted(FOLDER.glob("*.ipynb")):
        title, text = cells(path)
        yield path.name, f"examples/{path.stem}.md", title, text


def cells(path):
    """(title, text) of a notebook, without outputs."""
    notebook = json.loads(path.read_text(encoding="utf-8"))
    parts = [
        block(source) if cell["cell_type"] == "code" else source
        for cell in notebook["cells"]
        for source in ["".join(cell["source"])]
    ]
    title, _, rest = parts[0].removeprefix("# ").partition("\n")
    where = f"The notebook is `examples/{path.name}`."
    return title, "\n\n".join([f"**{title}**", rest.strip(), where, *parts[1:]])


def block(source):
    return f"````{{.python}}\n{source.rstrip()}\n````"


def opening():
    readme = FOLDER / "README.md"
    if readme.is_file():
        text = without_title(readme.read_text(encoding="utf-8"))
        known = {name for name, *_ in pages()}

        def link(found):
            name = found[1]
            return f"[{found[0]}]({Path(name).stem}.md)" if name in known else found[0]

        def followed(found):
            """A link of the folder: to the script's page, or its words where there is no page."""
            name = found[2]
            return f"[{found[1]}]({Path(name).stem}.md)" if name in known else found[1]

        text = re.sub(r"\[([^\]]+)\]\((?!https?:|#)([^)]+)\)", followed, text)
        return re.sub(r"(?<!\[)`(\w+\.(?:py|ipynb))`(?!\])", link, text)
    rows = [f"| [`{name}`]({Path(page).name}) | {title} |" for name, page, title, _ in pages()]
    return "\n".join(["| script | what it shows |", "|---|---|", *rows])


def on_config(config):
    chapter = next(part["Migrating"] for part in config.nav if "Migrating" in part)
    listed = [{name: page} for name, page, *_ in pages()]
    chapter.append({"Examples": [{"Overview": "examples/index.md"}, *listed]})
    return config


def on_files(files, config):
    page_of_source["examples/README.md"] = "examples/index.md"
    content = f"# Examples\n\n{opening()}\n"
    files.append(File.generated(config, "examples/index.md", content=content))
    for name, page, _, text in pages():
        page_of_source[f"examples/{name}"] = page
        files.append(File.generated(config, page, content=f"# {name}\n\n{text}\n"))
    return files
