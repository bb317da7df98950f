"""Which layers an adapter changes where the user names none: PEFT's choice for the architecture, else all that act."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import ExitStack
from functools import partial
from typing import Any

import torch
from peft.utils.constants import (
    TRANSFORMERS_MODELS_TO_IA3_TARGET_MODULES_MAPPING,
    TRANSFORMERS_MODELS_TO_LORA_TARGET_MODULES_MAPPING,
)
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from fedmezo.models.foreign import explained
from fedmezo.models.label_loss import probe_of
from fedmezo.models.vocabulary import embedding_and_head

_DEFAULTS: dict[str, Mapping[str, Any]] = {
    "lora": TRANSFORMERS_MODELS_TO_LORA_TARGET_MODULES_MAPPING,
    "ia3": TRANSFORMERS_MODELS_TO_IA3_TARGET_MODULES_MAPPING,
}
_NAMED_BY = ("target_modules", "target_parameters")


def with_targets(args: Mapping[str, object], base: PreTrainedModel) -> tuple[Mapping[str, object], list[str]]:
    """`llm.adapter.args` with the layers to adapt, and what the user should be told about the choice.

    Nothing is chosen where layers are named, where the method has none, and where PEFT's choice names some of this
    model: that one is only written down, since PEFT forgets it for some architectures.

    Raises:
        ModelError: the model cannot be computed.
    """
    method = str(args.get("adapter_method"))
    if method not in _DEFAULTS or any(args.get(key) is not None for key in _NAMED_BY):
        return args, []
    kind = str(base.config.model_type)
    default = _DEFAULTS[method].get(kind)
    if isinstance(default, str):  # a pattern, which is PEFT's to read
        return args, []
    if known := [target for target in default or () if _has(base, target)]:
        return ({**args, "target_modules": known} if method == "lora" else args), []
    names = linear_names(base)
    chosen: dict[str, object] = {"target_modules": names}
    if method == "ia3":
        chosen["feedforward_modules"] = []
    notice = (
        f"llm.adapter.args names no target_modules, and PEFT has no choice for {kind} models: all linear layers are "
        f"adapted: {', '.join(names)}"
    )
    return {**args, **chosen}, [notice]


def linear_names(base: PreTrainedModel) -> list[str]:
    """Names of the linear layers that a token passes through, the output head apart.

    A layer whose weight is only read, as parts of state space models are, is left out: an adapter would not be seen.
    So is one that gives more than a tensor, as some routers do: an adapter could not be added to that.
    """
    _, head = embedding_and_head(base)
    names = {module: name for name, module in base.named_modules() if isinstance(module, nn.Linear | Conv1D)}
    fused = {f"{name.rpartition('.')[0]}.out_proj" for name, _ in base.named_modules() if name.endswith(".conv1d")}
    called: set[str] = set()
    with ExitStack() as stack:
        for module, name in names.items():
            stack.callback(module.register_forward_hook(partial(_note, called, name)).remove)
        with torch.inference_mode(), explained(f"{type(base).__name__} cannot be computed"):
            base(input_ids=probe_of(base).input_ids, use_cache=False)
    kept = called - fused - {name for module, name in names.items() if module is head}
    return sorted({name.rpartition(".")[2] for name in kept})


def _note(called: set[str], name: str, _module: nn.Module, _inputs: object, output: object) -> None:
    if isinstance(output, Tensor):
        called.add(name)


def _has(base: PreTrainedModel, target: str) -> bool:
    return any(name.endswith(f".{target}") for name, _ in base.named_modules())
