"""A model without its weights, and where in a checkpoint each of them is.

Every saved tensor has its name, shape and precision, and one element in memory, which is seen as often as the shape
asks. It is built as transformers builds a model that it loads, by the same functions.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AutoConfig, AutoModelForCausalLM, GenerationConfig, PreTrainedModel
from transformers.conversion_mapping import get_model_conversion_mapping
from transformers.core_model_loading import WeightConverter, rename_source_key

from fedmezo.errors import ModelError
from fedmezo.models.checkpoint import Place, stored_tensors


def hollow_model(folder: Path, dtype: torch.dtype, own_code: bool) -> PreTrainedModel:
    """The model of a checkpoint, without its weights.

    Args:
        folder: where the checkpoint is.
        dtype: precision of the weights.
        own_code: see `loading.load_base`.
    """
    config = AutoConfig.from_pretrained(folder, trust_remote_code=own_code)
    if getattr(config, "quantization_config", None) is not None:
        raise ModelError(f"model.streamed: {folder} is quantised already, and cannot be read layer by layer")
    auto_model: Any = AutoModelForCausalLM  # whose annotations are not of this use
    with torch.device("meta"):
        model = auto_model.from_config(config, dtype=dtype, trust_remote_code=own_code)
    if model._get_dtype_plan(dtype):
        raise ModelError(f"model.streamed: {type(model).__name__} keeps some weights in float32: set model.dtype to it")
    _hollow_(model)
    _compute_unsaved_(model)
    if (folder / "generation_config.json").is_file():
        model.generation_config = GenerationConfig.from_pretrained(folder)
    return model  # type: ignore[no-any-return]  # as above


def placeholder(tensor: Tensor, device: torch.device) -> Tensor:
    """A tensor of the same shape and precision, of one element in memory."""
    return torch.zeros((), dtype=tensor.dtype, device=device).expand(tensor.shape)


def saved_tensors(module: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """Each tensor that a checkpoint has, once, under the name that comes first."""
    saved = module.state_dict().keys()
    for name, tensor in (*module.named_parameters(), *module.named_buffers()):
        if name in saved:
            yield name, tensor


def places_of(model: PreTrainedModel, folder: Path) -> dict[str, Place]:
    """The place of each saved tensor of a hollow model, by the model's own name for it.

    Raises:
        ModelError: the checkpoint is none in safetensors, is damaged, lacks weights, or holds them in another form.
    """
    transforms = get_model_conversion_mapping(model)
    converters = [transform for transform in transforms if isinstance(transform, WeightConverter)]
    renamings: Any = [transform for transform in transforms if not isinstance(transform, WeightConverter)]
    wanted: dict[str, Any] = dict(model.state_dict())
    found, converted = {}, set()
    for stored, place in stored_tensors(folder).items():
        name, pattern = rename_source_key(stored, renamings, converters, model.base_model_prefix, wanted)
        if name not in wanted and stored in wanted:
            name, pattern = stored, None
        found[name] = place
        if pattern is not None:
            converted.add(name)
    kind = type(model).__name__
    for name, tensor in saved_tensors(model):
        if name in converted:
            raise ModelError(
                f"model.streamed: this checkpoint of {kind} stores {name} in parts, which transformers puts together: "
                "load it and save it again (save_pretrained(..., save_original_format=False))"
            )
        if name not in found:
            raise ModelError(f"model {str(folder)!r} lacks weights: {name}")
        if found[name].shape != tuple(tensor.shape):
            there, here = list(found[name].shape), list(tensor.shape)
            raise ModelError(f"model {str(folder)!r}: {name} is of shape {there}, but its config makes it {here}")
    return found


def _hollow_(model: PreTrainedModel) -> None:
    """Put placeholders on the host in place of saved tensors; a tensor with several names stays one."""
    made: dict[int, tuple[Tensor, Tensor]] = {}  # by the old one's id, which stays its own while it is held
    for module in model.modules():
        stores: tuple[Any, ...] = (module._parameters, module._buffers)
        for tensors in stores:
            for name, tensor in tensors.items():
                if tensor is not None and name not in module._non_persistent_buffers_set:
                    if id(tensor) not in made:
                        made[id(tensor)] = tensor, _like(tensor)
                    tensors[name] = made[id(tensor)][1]


def _like(tensor: Tensor) -> Tensor:
    empty = placeholder(tensor, torch.device("cpu"))
    if isinstance(tensor, nn.Parameter):
        empty = nn.Parameter(empty, requires_grad=False)
    untyped: Any = empty
    untyped._is_hf_initialized = True  # what transformers looks at before it draws initial values
    return empty


def _compute_unsaved_(model: PreTrainedModel) -> None:
    """Compute what follows from the config and is in no checkpoint, such as the frequencies of rotary positions."""
    for module in model.modules():
        for name in module._non_persistent_buffers_set:
            buffer = module._buffers[name]
            if buffer is not None:
                module._buffers[name] = torch.empty_like(buffer, device="cpu")
    model.initialize_weights()  # type: ignore[no-untyped-call]  # has no annotations
