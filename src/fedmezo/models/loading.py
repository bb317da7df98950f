"""Base models and their tokenizers, from the Hugging Face hub, its cache, a local directory or file, or a package."""

from __future__ import annotations

import logging
import os
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import resources
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import constants, hf_hub_download, snapshot_download
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerFast
from transformers.utils import logging as transformers_logging

from fedmezo.errors import FedMeZOError, ModelError
from fedmezo.models.foreign import brief
from fedmezo.models.gguf_places import PACKAGE_PREFIX, file_in_package, hub_file, names_gguf, require_reader
from fedmezo.models.pickles import require_no_code
from fedmezo.models.quantised import NONE, quantise_
from fedmezo.models.streamed import load_streamed
from fedmezo.models.sums import check_sums
from fedmezo.models.vocabulary import grow_as_once

BUNDLED = "bundled"
PACKAGE_SUFFIX = "huggingface_llm"

_PROBE_SECONDS = 10
_NEEDED = {
    "config.json": ("config.json",),
    "weights": ("*.safetensors", "*.bin"),
    "tokenizer": ("*token*", "*vocab*", "*.model", "tekken.json"),
}
"""What a model's directory must hold, and the names of files, old ones too, one of which is enough."""
_WANTED = (
    "give a directory that holds config.json, the weights (*.safetensors) and the tokenizer, a .gguf file, or the name "
    "of a model on the Hugging Face hub"
)
_MOVED = ". If a run's model is somewhere else by now: --model BASE"


def load_base(
    name: str,
    cache_dir: str | None,
    dtype: torch.dtype,
    device: torch.device,
    *,
    quantization: str = NONE,
    own_code: bool = False,
    grown: bool = False,
    streamed: bool = False,
) -> tuple[PreTrainedModel, PreTrainedTokenizerFast]:
    """A frozen base model in evaluation mode, and its tokenizer, both as they were published.

    Args:
        name: a hub name, a local directory, a GGUF file (here, `OWNER/REPOSITORY/FILE.gguf` on the hub or
            `package:PACKAGE/FILE.gguf`) or `bundled`, each with or without `@huggingface_llm`.
        cache_dir: where the hub keeps what it downloads; None or empty for its usual place.
        dtype: precision of the weights.
        device: where the model goes.
        quantization: one of `models.quantised.SCHEMES`, for the weights of linear layers.
        own_code: run Python code that the model brings along, where transformers has none for it.
        grown: with the special tokens and rows that runs of earlier versions added.
        streamed: read the layers in each forward pass; see `models.streamed`.

    Raises:
        ModelError: the model cannot be fetched, is incomplete or damaged, is no causal language model, needs code of
            its own that may not run, or cannot be quantised.
    """
    source = locate(name)
    with _explained(source), without_progress_bar(), torch.random.fork_rng(devices=[]):
        if streamed:
            folder = _whole_folder(source, cache_dir or None)
            tokenizer = _tokenizer(folder, None, own_code)
            model: Any = load_streamed(Path(folder), dtype, device, quantization=quantization, own_code=own_code)
        else:
            tokenizer, model = _read_whole(source, cache_dir or None, dtype, own_code)
    if not tokenizer.is_fast:
        raise ModelError(
            f"model {source!r} has no fast tokenizer (a file tokenizer.json): convert it with transformers"
        )
    if grown:
        grow_as_once(model, tokenizer)
    model.config.use_cache = False
    model.name_or_path = source  # what a saved adapter names as its base
    model.requires_grad_(False).eval()
    logging.getLogger("bitsandbytes.autograd._functions").setLevel(logging.ERROR)  # a line for each 8-bit product else
    if not streamed:
        quantise_(model, quantization)
    return model if model.device == device else model.to(device), tokenizer  # some quantised checkpoints cannot move


def locate(name: str) -> str:
    """The directory, the file or the hub name that a model's name stands for.

    Raises:
        ModelError: the name has an unknown `@` suffix, or is a path where there is nothing.
    """
    stem, at, suffix = name.rpartition("@")
    if at and suffix == PACKAGE_SUFFIX:
        name = stem
    elif at and not Path(name).expanduser().is_dir():
        raise ModelError(f"model.type is {name!r}: after '@' only {PACKAGE_SUFFIX!r} is supported, or leave '@...' out")
    if name == BUNDLED:
        name = str(resources.files("fedmezo") / "bundled" / "base")
    path = Path(name).expanduser()
    if path.is_dir() or (names_gguf(name) and path.is_file()):
        return os.path.abspath(path)  # what a saved adapter names must be found from any folder
    if names_gguf(name):
        return _locate_gguf(name)
    if name.startswith(("/", ".", "~")) or name.count("/") > 1:
        raise ModelError(f"model.type is {name!r}, but there is no such directory: {_WANTED}{_MOVED}")
    return name


def _locate_gguf(name: str) -> str:
    """The name again, of a file in a package or on the hub."""
    if name.startswith(PACKAGE_PREFIX):
        file_in_package(name)
    elif hub_file(name) is None:
        raise ModelError(
            f"model.type is {name!r}, but there is no such file; one on the Hugging Face hub is "
            f"OWNER/REPOSITORY/FILE.gguf, one in an installed package {PACKAGE_PREFIX}PACKAGE/FILE.gguf"
        )
    return name


def _require_files(folder: Path) -> None:
    missing = [what for what, names in _NEEDED.items() if not any(any(folder.glob(name)) for name in names)]
    if missing:
        files = [str(path) for path in sorted(folder.glob("*.gguf"))]
        wanted = f"set model.type to the file itself: {' or '.join(files)}" if files else _WANTED
        raise ModelError(f"{folder} holds no base model, since there is no {', no '.join(missing)}: {wanted}")


def _read_whole(source: str, cache: str | None, dtype: torch.dtype, own_code: bool) -> tuple[Any, Any]:
    tokenizer, model, report = _read(source, cache, dtype, own_code)
    if report["missing_keys"]:
        raise ModelError(f"model {source!r} lacks weights: {', '.join(sorted(report['missing_keys'])[:5])}")
    return tokenizer, model


def _read(source: str, cache: str | None, dtype: torch.dtype, own_code: bool) -> tuple[Any, Any, dict[str, Any]]:
    """Tokenizer, model and loading report, from the disk if all of it is there, else from the hub."""
    if names_gguf(source):
        require_reader()
        from fedmezo.models.gguf import read_gguf  # needs the transformers that was just asked for

        return read_gguf(_gguf_path(source, cache), dtype)
    folder = _folder(source, cache)
    if folder is not None:
        try:
            return _read_from(
                folder, None, dtype, own_code
            )  # by its path: by its name, transformers asks the hub all the same
        except OSError:
            if folder == source:
                raise
    _require_hub(source, source, cache)
    return _read_from(source, cache, dtype, own_code)


def _gguf_path(source: str, cache: str | None) -> Path:
    """The file on the disk, fetched from the hub if it is not there yet."""
    if source.startswith(PACKAGE_PREFIX):
        return file_in_package(source)
    on_hub = hub_file(source)
    if Path(source).is_file() or on_hub is None:
        return Path(source)
    repository, file = on_hub
    try:
        return Path(hf_hub_download(repository, file, cache_dir=cache, local_files_only=True))
    except (OSError, ValueError):  # not there; not a name that the hub could know
        _require_hub(source, f"{repository} {file}", cache)
        return Path(hf_hub_download(repository, file, cache_dir=cache))


def _folder(source: str, cache: str | None) -> str | None:
    """The directory given, or the one in the hub's cache, whose files may be incomplete."""
    if Path(source).is_dir():
        _require_files(Path(source))
        return source
    try:
        return snapshot_download(source, cache_dir=cache, local_files_only=True)
    except (OSError, ValueError):  # not there; not a name that the hub could know
        return None


def _whole_folder(source: str, cache: str | None) -> str:
    """The directory that holds all of a model, which is fetched from the hub if it is not there yet."""
    if names_gguf(source):
        raise ModelError(f"model.streamed: {source} is a GGUF file, and layers are read from safetensors alone")
    folder = _folder(source, cache)
    if folder is None:
        _require_hub(source, source, cache)
        folder = snapshot_download(source, cache_dir=cache)
    return folder


def _read_from(source: str, cache: str | None, dtype: torch.dtype, own_code: bool) -> tuple[Any, Any, dict[str, Any]]:
    if Path(source).is_dir():
        require_no_code(Path(source))
        check_sums(Path(source))
    tokenizer = _tokenizer(source, cache, own_code)
    auto_model: Any = AutoModelForCausalLM  # what it returns with `output_loading_info` is not in its annotations
    model, report = auto_model.from_pretrained(
        source, dtype=dtype, output_loading_info=True, weights_only=True, cache_dir=cache, trust_remote_code=own_code
    )
    return tokenizer, model, report


def _tokenizer(source: str, cache: str | None, own_code: bool) -> Any:
    return AutoTokenizer.from_pretrained(
        source,
        padding_side="right",
        use_fast=True,
        cache_dir=cache,
        trust_remote_code=own_code,  # unset, transformers would ask
    )


def _require_hub(source: str, what: str, cache: str | None) -> None:
    """Fail at once when the hub does not answer: its own client retries for most of a minute first.

    Args:
        source: the model's name.
        what: the words that `hf download` takes for it.
        cache: folder of the hub's cache; None for its usual place.
    """
    reason = "HF_HUB_OFFLINE is set" if constants.HF_HUB_OFFLINE else _hub_failure()
    if reason is None:
        return
    raise ModelError(
        f"model {source!r} is not on this machine, and the Hugging Face hub ({constants.ENDPOINT}) cannot be reached "
        f"({reason}). On a machine with a network run `hf download {what} --local-dir DIR`, bring DIR here, and set "
        f"model.type to its path; or copy the hub's cache folder to {cache or constants.HF_HUB_CACHE} "
        "(llm.cache.model). model.type `bundled` needs no download"
    )


def _hub_failure() -> str | None:
    try:
        urllib.request.urlopen(constants.ENDPOINT, timeout=_PROBE_SECONDS).close()
    except urllib.error.HTTPError:
        return None  # it answered: whether the model may be read is for the hub's client to find out
    except OSError as error:
        return str(error)
    return None


@contextmanager
def _explained(source: str) -> Iterator[None]:
    try:
        yield
    except FedMeZOError:
        raise
    except Exception as error:
        raise ModelError(_reason(source, error)) from error


def _reason(source: str, error: Exception) -> str:
    if "trust_remote_code" in str(error):
        return (
            f"model {source!r} brings Python code of its own, which runs with all your rights: read it, and if you "
            "trust it, set model.trust_remote_code: True (eval, generate, import and site: --trust-remote-code)"
        )
    words = brief(error)
    return f"model {source!r} cannot be loaded as a causal language model with its tokenizer: {words}{_hint(words)}"


def _hint(reason: str) -> str:
    """What to do about a tokenizer.model file: without SentencePiece, transformers takes it for another kind."""
    if find_spec("sentencepiece") is None and ("tiktoken" in reason or "sentencepiece" in reason.lower()):
        return " If its tokenizer is a SentencePiece file (tokenizer.model): `pip install sentencepiece`"
    return ""


@contextmanager
def without_progress_bar() -> Iterator[None]:
    """Within the block, transformers shows none."""
    bars: Any = transformers_logging  # has no annotations
    shown = bars.is_progress_bar_enabled()
    bars.disable_progress_bar()
    try:
        yield
    finally:
        if shown:
            bars.enable_progress_bar()
