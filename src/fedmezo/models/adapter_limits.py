"""What an adapter's keys may ask for, whoever wrote them: they may come with a published log or from a server.

PEFT matches patterns of module names without a limit of time, makes adapters of any size, loads tokenizers and imports
modules that keys name. Here patterns are matched first, within a time, and PEFT is given the names that they match;
sizes are estimated before anything is made; and keys that lead to other people's code or files are refused.
"""

from __future__ import annotations

import re
import time
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import regex
import torch
from peft import PeftConfig
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from fedmezo.errors import ModelError

ALL_LINEAR = "all-linear"
SECONDS_TO_MATCH = 1.0
LONGEST_PATTERN = 1000
SMALL = 1 << 24
"""Parameters that an adapter may always have; beyond, it may not have more than its base model."""
MOST_REPLICAS = 4
"""How often all layers may be replicated."""

_PATTERNS = ("target_modules", "exclude_modules", "feedforward_modules")
_PLAIN_NAMES = re.compile(r"\^?[\w.-]+\$?")  # as part of a pattern: nothing in it repeats
_REFUSED = {
    "megatron_config": "Megatron is not supported",
    "megatron_core": "it names a module to import",
    "tokenizer_kwargs": "the tokenizer is the base model's",
}
_SIZES = (
    *("r", "num_virtual_tokens", "encoder_hidden_size", "encoder_num_layers"),
    *("token_dim", "num_layers", "num_attention_heads", "num_transformer_submodules"),
)
_LARGEST_SIZE = 1 << 20
_OF_SAVED = (
    *(*_SIZES, *_PATTERNS, "rank_pattern", "alpha_pattern"),
    *("layer_replication", "layers_pattern", "layers_to_transform", "megatron_config"),
)
"""Keys of a saved configuration that are looked at; it loads no tokenizer, and names Megatron's module in any case."""


def within_limits(keys: Mapping[str, Any], base: PreTrainedModel) -> dict[str, Any]:
    """The keys with the names of modules in place of patterns.

    Args:
        keys: of PEFT's config, of the right types.
        base: the model to be adapted.

    Raises:
        ModelError: a key asks for more than it may.
    """
    for key, why in _REFUSED.items():
        if keys.get(key) is not None:
            raise _refusal(key, keys[key], f"leave it out: {why}")
    checked = dict(keys)
    _bound_sizes(keys)
    _bound_layers(keys, base)
    _require_plain(keys)
    _use_own_tokenizer(checked, base)
    _resolve(checked, base)
    _bound_parameters(checked, base)
    return checked


def bound_saved_(config: PeftConfig, base: PreTrainedModel) -> None:
    """Hold the configuration of a saved adapter, which somebody else may have written, against the same limits.

    Raises:
        ModelError: see `within_limits`.
    """
    keys = {name: value for name in _OF_SAVED if (value := getattr(config, name, None)) is not None}
    for name, value in within_limits(keys, base).items():
        setattr(config, name, value)


def _bound_sizes(keys: Mapping[str, Any]) -> None:
    for key in _SIZES:
        size = keys.get(key, 1)
        if size is not None and not (type(size) is int and 0 <= size <= _LARGEST_SIZE):
            raise _refusal(key, size, f"needs a whole number from 1 to {_LARGEST_SIZE}")
    for key in ("rank_pattern", "alpha_pattern"):
        for size in (keys.get(key) or {}).values():
            if type(size) not in (int, float) or not 0 < size <= _LARGEST_SIZE:
                raise _refusal(key, keys[key], f"needs numbers above 0 and up to {_LARGEST_SIZE}")


def _bound_layers(keys: Mapping[str, Any], base: PreTrainedModel) -> None:
    """Replicated layers must be there, and not be too many."""
    ranges = keys.get("layer_replication")
    if not ranges:
        return
    layers = base.config.num_hidden_layers
    ranges = [(int(start), int(end)) for start, end in ranges]
    total = sum(end - start for start, end in ranges)
    if not all(0 <= start < end <= layers for start, end in ranges) or total > MOST_REPLICAS * layers:
        raise _refusal(
            "layer_replication",
            ranges,
            f"needs ranges within the {layers} layers of the model, of {MOST_REPLICAS * layers} layers in all",
        )


def _require_plain(keys: Mapping[str, Any]) -> None:
    """What PEFT makes a part of its own patterns is a name, with a sign of its start or end at most."""
    wanted = keys.get("layers_pattern") or ()
    parts = {
        "layers_pattern": (wanted,) if isinstance(wanted, str) else wanted,
        "rank_pattern": keys.get("rank_pattern") or {},
        "alpha_pattern": keys.get("alpha_pattern") or {},
    }
    for key, names in parts.items():
        for name in names:
            if not _PLAIN_NAMES.fullmatch(name):
                raise _refusal(key, name, "needs names of modules, without signs that repeat or choose")


def _use_own_tokenizer(keys: dict[str, Any], base: PreTrainedModel) -> None:
    own, named = base.name_or_path, keys.get("tokenizer_name_or_path")
    if named not in (None, own):
        raise _refusal("tokenizer_name_or_path", named, "leave it out: the tokenizer is the base model's")
    if keys.get("prompt_tuning_init_text"):
        keys["tokenizer_name_or_path"] = own


def _resolve(keys: dict[str, Any], base: PreTrainedModel) -> None:
    """Put the names that a pattern matches in its place."""
    if _is_pattern(keys.get("target_modules")) and keys.get("layers_to_transform") is not None:
        raise _refusal("layers_to_transform", keys["layers_to_transform"], "needs target_modules to be a list")
    names = [name for name, _ in base.named_modules() if name]
    until = time.monotonic() + SECONDS_TO_MATCH
    resolved = {key: _matched(key, keys[key], names, until) for key in _PATTERNS if _is_pattern(keys.get(key))}
    targets = keys.get("target_modules")
    if "feedforward_modules" in resolved and not (targets is None or isinstance(targets, str)):
        resolved["target_modules"] = [name for name in names if _is_named(name, targets)]  # to hold the same names
    for key, found in resolved.items():
        keys[key] = found or [keys[key]]  # as a name, which PEFT does not find either


def _is_pattern(value: object) -> bool:
    return isinstance(value, str) and value.lower() != ALL_LINEAR


def _matched(key: str, pattern: str, names: Sequence[str], until: float) -> list[str]:
    if len(pattern) > LONGEST_PATTERN:
        raise _refusal(key, pattern, f"needs a pattern of at most {LONGEST_PATTERN} characters")
    try:
        re.compile(pattern)  # what Python's own module takes, and the other one besides, is not meant
        compiled = regex.compile(pattern)
        return [name for name in names if compiled.fullmatch(name, timeout=max(until - time.monotonic(), 1e-3))]
    except TimeoutError as error:
        raise _refusal(key, pattern, "takes too long to match; needs a simpler pattern, or a list of names") from error
    except (re.error, regex.error, OverflowError, RecursionError, ValueError) as error:
        raise _refusal(key, pattern, f"is no regular expression: {error}") from error


def _is_named(name: str, wanted: Iterable[str]) -> bool:
    """Whether PEFT takes a module for one of a list."""
    return any(name == one or name.endswith(f".{one}") for one in wanted)


def _bound_parameters(keys: Mapping[str, Any], base: PreTrainedModel) -> None:
    """Refuse an adapter that is larger than its base model, before PEFT makes it."""
    most = max(base.num_parameters(), SMALL)
    estimates = {"r": _low_rank_parameters(keys, base), "num_virtual_tokens": _prompt_parameters(keys, base)}
    for key, estimate in estimates.items():
        if estimate > most:
            raise _refusal(
                key, keys.get(key), f"makes an adapter of {estimate:.3g} parameters; needs one of at most {most:.3g}"
            )


def _low_rank_parameters(keys: Mapping[str, Any], base: PreTrainedModel) -> int:
    ranks = [keys.get("r"), *(keys.get("rank_pattern") or {}).values()]
    rank = max((int(rank) for rank in ranks if rank is not None), default=0)
    targets = keys.get("target_modules")
    parameters = 0
    for name, module in base.named_modules():
        is_target = not isinstance(targets, list | tuple | set) or _is_named(name, targets)
        if isinstance(module, torch.nn.Linear | Conv1D) and is_target:
            parameters += rank * sum(module.weight.shape)
    return parameters


def _prompt_parameters(keys: Mapping[str, Any], base: PreTrainedModel) -> int:
    tokens = keys.get("num_virtual_tokens")
    if tokens is None:
        return 0
    config = base.config
    tokens *= keys.get("num_transformer_submodules") or 1
    width = keys.get("token_dim") or config.hidden_size
    layers = keys.get("num_layers") or config.num_hidden_layers
    encoder = keys.get("encoder_hidden_size") or width
    depth = keys.get("encoder_num_layers") or 1
    return int(2 * layers * width * (tokens + encoder) + encoder * (8 * encoder * depth + 2 * width))


def _refusal(key: str, value: object, why: str) -> ModelError:
    text = repr(value)
    shown = text if len(text) <= 60 else f"{text[:57]}..."
    return ModelError(f"llm.adapter.args: {key} is {shown}; {why}")
