"""Dependencies point one way, and the algorithm knows nothing of files, network or libraries for models."""

import ast
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[2] / "src" / "fedmezo"

LAYERS = (
    {"errors", "plain", "scratch", "records"},
    {"arguments", "atomic", "completion", "config"},
    {"zo"},
    {"data", "models"},
    {"federation"},
    {"privacy"},
    {"engines", "results"},
    {"runs"},
    {"studies"},
    {"tasks", "machines"},
    {"handover"},
    {"api", "campaign"},
    {"cli", "__main__"},
)
"""From the bottom up: a module imports from its own layer and those below."""

FORBIDDEN = {"zo", "federation", "privacy"}
LIBRARIES = {"transformers", "peft", "nvflare", "yaml", "pathlib", "rich", "socket", "pydantic"}


def part_of(path: Path) -> str:
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def imports_of(path: Path) -> set[str]:
    names: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            names.update(f"{node.module}.{alias.name}" for alias in node.names)
    return names


SOURCES = sorted(path for path in PACKAGE.rglob("*.py") if path.name != "__init__.py" or path.parent != PACKAGE)


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_imports_point_down(path: Path) -> None:
    level = {part: number for number, layer in enumerate(LAYERS) for part in layer}
    for name in imports_of(path):
        if name.startswith("fedmezo."):
            other = name.split(".")[1]
            if other != "__version__":
                assert level[other] <= level[part_of(path)], f"{part_of(path)} must not import {other}"


@pytest.mark.parametrize("path", [p for p in SOURCES if part_of(p) in FORBIDDEN], ids=lambda path: path.name)
def test_the_algorithm_stays_pure(path: Path) -> None:
    assert not {name.split(".")[0] for name in imports_of(path)} & LIBRARIES


def module_of(path: Path) -> str:
    return ".".join(["fedmezo", *path.relative_to(PACKAGE).with_suffix("").parts]).removesuffix(".__init__")


def test_no_module_imports_itself_through_others() -> None:
    """Wherever the import stands: at the top, in a function, or for the type checker alone."""
    modules = {module_of(path): path for path in PACKAGE.rglob("*.py")}

    def imported(name: str) -> str:
        return name if name in modules else name.rpartition(".")[0]  # else a name inside a module

    graph = {module: {imported(name) for name in imports_of(path)} & modules.keys() for module, path in modules.items()}
    assert graph["fedmezo.machines.worker"] >= {"fedmezo.machines.settings", "fedmezo.machines.site"}
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        pytest.fail(" -> ".join(error.args[1]))
