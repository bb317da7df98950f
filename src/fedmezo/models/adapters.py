"""PEFT adapters: from `llm.adapter.args` to a model with reproducible initial values, and to files that PEFT loads."""

from __future__ import annotations

import json
import math
import re
import warnings
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from dataclasses import fields
from pathlib import Path
from typing import Any, get_type_hints

import torch
from peft import (
    IA3Config,
    LoraConfig,
    PeftConfig,
    PeftModel,
    PeftType,
    PrefixTuningConfig,
    PromptEncoderConfig,
    PromptTuningConfig,
    TaskType,
    get_peft_model,
    get_peft_model_state_dict,
    set_peft_model_state_dict,
)
from pydantic import TypeAdapter, ValidationError
from safetensors import SafetensorError
from safetensors.torch import load
from torch import Tensor
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from fedmezo.atomic import replacing
from fedmezo.errors import ModelError
from fedmezo.models.adapter_limits import within_limits
from fedmezo.models.checksum import CONFIG_FILE, WEIGHTS_FILE, check_adapter, with_checksum
from fedmezo.models.flat import ADAPTER_NAME, trainable_parameters
from fedmezo.models.foreign import explained
from fedmezo.zo.noise import Purpose, Stream, words

METHODS: dict[str, type[PeftConfig]] = {
    "lora": LoraConfig,
    "prefix": PrefixTuningConfig,
    "prompt": PromptTuningConfig,
    "p-tuning": PromptEncoderConfig,
    "ia3": IA3Config,
}

_PACKAGE = "peft"
_OURS = ("adapter_package", "adapter_method")
_FILLED_BY_PEFT = {
    "task_type",
    "peft_type",
    "auto_mapping",
    "peft_version",
    "base_model_name_or_path",
    "revision",
    "inference_mode",
    "runtime_config",
}
_MODULE_KEYS = ("target_modules", "exclude_modules", "modules_to_save")
_LORA_INITIALISATIONS = (True, False, "gaussian", "orthogonal")
_SAVED_NAME = "saved"
_CONSTRUCTOR_QUERY = 1
"""Query word of the draw that seeds PEFT's constructors: the tensors drawn here take query 0."""


def attach_adapter(base: PreTrainedModel, args: Mapping[str, object], seed: int) -> PeftModel:
    """Wrap a base model (in place) with a new adapter whose initial values follow from the run's seed alone.

    The matrices A of a LoRA with PEFT's default initialisation get the same bits on every machine; what other
    constructors draw comes from torch's CPU generator, which the versions of torch and PEFT may change.

    Args:
        base: a causal language model.
        args: the mapping in `llm.adapter.args`: `adapter_package`, `adapter_method` and keys of PEFT's own config.
        seed: run seed.

    Raises:
        ModelError: a key or value is wrong, or names modules that the model does not have.
    """
    config = adapter_config(args, base)
    low, high = words(Stream(seed, Purpose.ADAPTER, query=_CONSTRUCTOR_QUERY), 0, 2).tolist()
    with torch.random.fork_rng(devices=[]), warnings.catch_warnings(), _refusal_of(args):
        _silence_peft()
        torch.default_generator.manual_seed(low | high << 32)
        model = get_peft_model(base, config, adapter_name=ADAPTER_NAME)
    if isinstance(config, LoraConfig) and config.init_lora_weights is True:
        _redraw_lora_(model, seed)
    return model


def adapter_config(args: Mapping[str, object], base: PreTrainedModel) -> PeftConfig:
    """PEFT's config for `llm.adapter.args`, checked against the model.

    Raises:
        ModelError: see `attach_adapter`.
    """
    keys: dict[str, Any] = {key: value for key, value in args.items() if key not in _OURS}
    cls = _config_class(args)
    _check_keys(keys, cls, str(args["adapter_method"]))
    _check_initialisation(keys)
    _check_modules(keys, base)
    keys = within_limits(keys, base)
    if "fan_in_fan_out" in _key_names(cls):  # layers of GPT-2 store their weight transposed; PEFT warns when untold
        keys.setdefault("fan_in_fan_out", any(isinstance(module, Conv1D) for module in base.modules()))
    with _refusal_of(args):
        return cls(task_type=TaskType.CAUSAL_LM, **keys)


def _refusal_of(args: Mapping[str, object]) -> AbstractContextManager[None]:
    return explained(f"llm.adapter.args {dict(args)}: PEFT refuses")


def write_adapter(model: PeftModel, directory: Path) -> None:
    """Write the live adapter as `PeftModel.from_pretrained` loads it: float32 weights and `adapter_config.json`.

    Each file is replaced at once, so that a reader finds the old adapter or the new one.
    """
    state = get_peft_model_state_dict(model, adapter_name=ADAPTER_NAME, save_embedding_layers=False)
    tensors = {name: tensor.detach().float().cpu().clone().contiguous() for name, tensor in state.items()}
    config = _config_json(model.peft_config[ADAPTER_NAME])
    directory.mkdir(parents=True, exist_ok=True)
    _replace(directory / CONFIG_FILE, config.encode())
    _replace(directory / WEIGHTS_FILE, with_checksum(json.loads(config), tensors))


def read_adapter(model: PeftModel, directory: Path) -> None:
    """Load a saved adapter of the same method and shape into the live tensors.

    Args:
        model: with its adapter attached.
        directory: a folder that `write_adapter` or PEFT's `save_pretrained` wrote, or a run's folder.

    Raises:
        ModelError: no adapter is there, it is damaged, or it does not fit the model; p-tuning and
            projected prefixes, whose saved form does not hold what is trained.
    """
    folder = directory / "adapter" if (directory / "adapter").is_dir() else directory
    config = model.peft_config[ADAPTER_NAME]
    if config.peft_type == PeftType.P_TUNING or (isinstance(config, PrefixTuningConfig) and config.prefix_projection):
        raise ModelError(
            "federate.restore_from: the saved adapter holds its encoder's output, not the encoder's weights"
        )
    path = folder / WEIGHTS_FILE
    check_adapter(folder)
    try:
        state = load(path.read_bytes())
    except OSError as error:
        raise ModelError(f"federate.restore_from: {path} cannot be read: {error.strerror}") from error
    except SafetensorError as error:
        raise ModelError(f"federate.restore_from: {path} is damaged: {error}") from error
    _check_fits(state, get_peft_model_state_dict(model, adapter_name=ADAPTER_NAME, save_embedding_layers=False), path)
    set_peft_model_state_dict(model, state, adapter_name=ADAPTER_NAME)


def _silence_peft() -> None:
    """Within `catch_warnings`: two warnings about PEFT's own doing, for which its user can do nothing."""
    warnings.filterwarnings("ignore", message="`is_gradient_checkpointing`")  # it reads the old name
    warnings.filterwarnings(
        "ignore", message="The following (rank|alpha)_pattern keys"
    )  # it wrote them, for fused experts


@contextmanager
def loaded_beside(model: PeftModel, directory: Path) -> Iterator[None]:
    """Within the block a saved adapter takes the live one's place, as PEFT itself loads it: no second base in memory.

    Raises:
        ModelError: PEFT cannot load it.
    """
    with torch.random.fork_rng(devices=[]), warnings.catch_warnings():
        _silence_peft()
        with explained(f"{directory}: PEFT cannot load this adapter"):
            model.load_adapter(str(directory), _SAVED_NAME, torch_device=str(model.device))
    model.set_adapter(_SAVED_NAME)
    try:
        yield
    finally:
        model.set_adapter(ADAPTER_NAME)
        model.delete_adapter(_SAVED_NAME)


def _check_fits(state: Mapping[str, Tensor], own: Mapping[str, Tensor], path: Path) -> None:
    for name in sorted(state.keys() | own.keys()):
        there, here = (str(tuple(tensors[name].shape)) if name in tensors else "missing" for tensors in (state, own))
        if there != here:
            raise ModelError(
                f"federate.restore_from: {path} does not fit llm.adapter.args: {name} is {there} there and {here} here"
            )


def _config_class(args: Mapping[str, object]) -> type[PeftConfig]:
    package = args.get("adapter_package", _PACKAGE)
    if package != _PACKAGE:
        raise ModelError(f"llm.adapter.args: adapter_package is {package!r}; only {_PACKAGE!r} is supported")
    method = args.get("adapter_method")
    if not isinstance(method, str) or method not in METHODS:
        raise ModelError(f"llm.adapter.args: adapter_method is {method!r}; it must be one of {', '.join(METHODS)}")
    return METHODS[method]


def _key_names(cls: type[PeftConfig]) -> list[str]:
    return sorted(field.name for field in fields(cls) if field.init and field.name not in _FILLED_BY_PEFT)


def _check_keys(keys: Mapping[str, object], cls: type[PeftConfig], method: str) -> None:
    allowed, types = _key_names(cls), get_type_hints(cls)
    for key, value in keys.items():
        if key not in allowed:
            raise ModelError(
                f"llm.adapter.args: {key!r} is no key of adapter_method {method!r}; its keys are {', '.join(allowed)}"
            )
        try:
            TypeAdapter(types[key]).validate_python(value)
        except ValidationError as error:
            reason = error.errors()[0]["msg"].lower()
            raise ModelError(f"llm.adapter.args: {key} is {value!r}: {reason}") from error
    tokens = keys.get("num_virtual_tokens")
    if "num_virtual_tokens" in allowed and not (isinstance(tokens, int) and tokens > 0):
        raise ModelError(
            f"llm.adapter.args: adapter_method {method!r} needs num_virtual_tokens, a whole number above 0"
            + ("" if tokens is None else f"; it is {tokens!r}")
        )


def _check_initialisation(keys: Mapping[str, object]) -> None:
    """The base weights are what their hash in the journal says: PiSSA, OLoRA and the like would change them."""
    chosen = keys.get("init_lora_weights", True)
    if chosen not in _LORA_INITIALISATIONS:
        raise ModelError(
            f"llm.adapter.args: init_lora_weights is {chosen!r}, which changes the base weights or needs data; "
            f"it must be one of {', '.join(str(value) for value in _LORA_INITIALISATIONS)}"
        )


def _check_modules(keys: Mapping[str, object], base: PreTrainedModel) -> None:
    """Every entry of a list of modules must fit one: PEFT is content when a single one does."""
    names = [name for name, _ in base.named_modules()]
    for key in _MODULE_KEYS:
        wanted = keys.get(key)
        for module in wanted if isinstance(wanted, list | tuple | set) else ():
            if not any(name == module or name.endswith(f".{module}") for name in names):
                raise ModelError(
                    f"llm.adapter.args: {key} names {module!r}, which {type(base).__name__} does not have; "
                    f"it has {', '.join(_linear_names(base))}"
                )


def _linear_names(base: PreTrainedModel) -> list[str]:
    linear = [name for name, module in base.named_modules() if isinstance(module, torch.nn.Linear | Conv1D)]
    return sorted({re.sub(r".*\.", "", name) for name in linear})


def _redraw_lora_(model: PeftModel, seed: int) -> None:
    for index, (name, parameter) in enumerate(trainable_parameters(model)):
        if name.endswith(".lora_A.weight"):
            values = _kaiming_uniform(Stream(seed, Purpose.ADAPTER, step=index), parameter.shape)
            parameter.data.copy_(values)


def _kaiming_uniform(stream: Stream, shape: torch.Size) -> Tensor:
    """PEFT's rule for A, U(-1/sqrt(fan_in), 1/sqrt(fan_in)), with one rounding and so the same bits everywhere.

    The high 24 bits k of a word give 2 k / 2^24 - 1, exact in float32.
    """
    bits = words(stream, 0, shape.numel()) >> 8
    symmetric = (bits - (1 << 23)).to(torch.float32) / (1 << 23)
    bound = torch.tensor(1 / math.sqrt(shape[1:].numel()), dtype=torch.float32)
    return (symmetric * bound).view(shape)


def _config_json(config: PeftConfig) -> str:
    content: dict[str, Any] = config.to_dict() | {"inference_mode": True}
    return json.dumps(content, indent=2, sort_keys=True, default=sorted) + "\n"  # sets alone are no JSON


def _replace(path: Path, content: bytes) -> None:
    with replacing(path) as file:
        file.write(content)
