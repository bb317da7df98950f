"""Base models in GGUF, the file format of llama.cpp: how transformers turns a file into a plain model.

A file holds weights, most of them in blocks of few bits, the tokenizer and the chat template. The weights are
dequantised as they are read, so that what is tuned, hashed and evaluated is an ordinary model of `model.dtype`.
"""

from __future__ import annotations

import io
import struct
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, redirect_stderr
from pathlib import Path
from typing import Any

import torch
import transformers
from gguf import GGUFReader
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, GgufConfig
from transformers.integrations.gguf import GGUF_ARCHS, read_gguf_metadata  # type: ignore[attr-defined]  # no __all__
from transformers.modeling_gguf_pytorch_utils import GGUF_SUPPORTED_ARCHITECTURES

from fedmezo.data.parse import what_instead_of_data
from fedmezo.errors import ModelError

_MAGIC = b"GGUF"
_ARCHITECTURE, _TOKENS = "general.architecture", "tokenizer.ggml.tokens"
_SPECIAL_TOKENS = ("bos", "eos", "unknown", "padding")
_NOT_TAKEN_OVER = {
    "head_dim": "attention.key_length",
    "n_positions": "context_length",
    "moe_intermediate_size": "expert_feed_forward_length",
    "shared_expert_intermediate_size": "expert_shared_feed_forward_length",
}
"""Fields of a configuration that transformers leaves at their defaults for some architectures, and their metadata."""
_NOT_CAUSAL = {"general", "tokenizer", "t5", "umt5"}
"""What transformers lists among its architectures, but is none of a causal language model."""
_UNREADABLE = (ValueError, IndexError, KeyError, OverflowError, struct.error)
"""What readers of the format raise where a file ends too early or holds something else."""


def read_gguf(path: Path, dtype: torch.dtype) -> tuple[Any, Any, dict[str, Any]]:
    """Tokenizer, dequantised model and loading report.

    Args:
        path: the file.
        dtype: precision of the weights.

    Raises:
        ModelError: the file is no GGUF, truncated or damaged, part of a split model, or without a tokenizer.
        Exception: whatever else transformers raises, of an architecture that it does not know for example.
    """
    metadata = _metadata(path)
    _check(path, metadata)
    place: dict[str, Any] = {"gguf_file": path.name, "trust_remote_code": False}
    with _failure_explained(path, metadata), redirect_stderr(io.StringIO()):  # tqdm's bar there cannot be turned off
        tokenizer = AutoTokenizer.from_pretrained(str(path.parent), padding_side="right", **place)
        config = AutoConfig.from_pretrained(str(path.parent), **place)
        pad = getattr(config, "pad_token_id", None)
        if pad is not None and pad >= metadata[_TOKENS]:  # a default of the architecture's, for another vocabulary
            config.pad_token_id = None
        model, report = _read_weights(path, config, dtype)
        if report["mismatched_keys"]:
            model, report = _read_weights(path, _with_what_was_left(config, metadata), dtype)
    if report["mismatched_keys"]:
        name, in_file, wanted = sorted(report["mismatched_keys"])[0]
        raise ModelError(
            f"model {str(path)!r} has weights of other shapes than its metadata describes, as transformers reads it: "
            f"{name} is {tuple(in_file)} in the file, and would be {tuple(wanted)}"
        )
    model.hf_quantizer = None  # from here on it is a plain model, whatever its file was
    vars(model.config).pop("quantization_config", None)
    return tokenizer, model, report


def _read_weights(path: Path, config: Any, dtype: torch.dtype) -> tuple[Any, dict[str, Any]]:
    auto_model: Any = AutoModelForCausalLM  # what it returns with `output_loading_info` is not in its annotations
    model, report = auto_model.from_pretrained(
        str(path.parent),
        config=config,
        dtype=dtype,
        gguf_file=path.name,
        output_loading_info=True,
        ignore_mismatched_sizes=True,  # they are in the report then, by name
        quantization_config=GgufConfig(dequantize=True),
    )
    return model, report


def _with_what_was_left(config: Any, metadata: Mapping[str, Any]) -> Any:
    """The configuration with those fields from the file that transformers left at the defaults of their class."""
    for field, key in _NOT_TAKEN_OVER.items():
        value = metadata.get(f"{metadata[_ARCHITECTURE]}.{key}")
        if isinstance(value, int) and hasattr(config, field):
            setattr(config, field, value)
    return config


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
    if _TOKENS not in metadata:
        raise ModelError(f"model {str(path)!r} holds no tokenizer ({_TOKENS}), so it can read no text")
    for kind in _SPECIAL_TOKENS:
        key = f"tokenizer.ggml.{kind}_token_id"
        if metadata.get(key, 0) >= metadata[_TOKENS]:
            raise ModelError(
                f"model {str(path)!r} is damaged: its {key} is {metadata[key]}, but it has {metadata[_TOKENS]} tokens"
            )


@contextmanager
def _failure_explained(path: Path, metadata: Mapping[str, Any]) -> Iterator[None]:
    """Where reading fails, find out whether the file is whole; only then, since a second look takes seconds."""
    try:
        yield
    except Exception as error:
        try:
            GGUFReader(path)
        except _UNREADABLE as damage:
            raise _damaged(path, damage) from damage
        if "architecture" in str(error) and "not supported" in str(error):
            raise ModelError(
                f"model {str(path)!r} is of the architecture {metadata[_ARCHITECTURE]}, which transformers "
                f"{transformers.__version__} does not read from GGUF files; it reads {', '.join(_known())}. Give the "
                "model in its original form, a folder or a name on the hub"
            ) from error
        raise


def _known() -> list[str]:
    """The architectures that transformers reads, by the names that it has for them."""
    return sorted({*GGUF_SUPPORTED_ARCHITECTURES, *GGUF_ARCHS} - _NOT_CAUSAL)


def _damaged(path: Path, error: Exception) -> ModelError:
    return ModelError(
        f"model {str(path)!r} ends too early or is damaged ({path.stat().st_size:,} bytes; {error}): fetch it again"
    )
