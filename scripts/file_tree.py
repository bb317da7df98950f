"""Prints docs/tree.md: every module of the package with the first sentence of its docstring.

python -m scripts.file_tree > docs/tree.md
"""

import ast
import re
from pathlib import Path

PACKAGE = Path(__file__).parents[1] / "src" / "fedmezo"
HEAD = """# The files

One line each, from the modules' own docstrings. Imports point upwards in this list: a folder uses those above it.

This page is made by `python -m scripts.file_tree > docs/tree.md`.
"""
FOLDERS = (
    *("", "config", "zo", "zo/estimators", "data", "models", "federation", "privacy", "engines", "results", "runs"),
    *("studies", "tasks", "tasks/caged", "machines", "machines/flare", "machines/workers", "handover", "campaign"),
)


def purpose(path: Path) -> str:
    """First sentence of a module's docstring."""
    text = ast.get_docstring(ast.parse(path.read_text())) or ""
    paragraph = " ".join(text.split("\n\n")[0].split())
    return re.split(r"(?<=[.])\s", paragraph)[0]


def section(folder: str) -> str:
    """A folder's heading and table."""
    where = PACKAGE / folder
    title = f"## `{folder}/`\n\n{purpose(where / '__init__.py')}" if folder else "## `src/fedmezo/`"
    rows = [f"| `{path.name}` | {purpose(path)} |" for path in sorted(where.glob("*.py")) if path.stem != "__init__"]
    return "\n".join([title, "", "| file | |", "|---|---|", *rows])


def page() -> str:
    """The whole page."""
    return "\n\n".join([HEAD.strip(), *map(section, FOLDERS)]) + "\n"


if __name__ == "__main__":
    print(page(), end="")
