"""Which device and which precision a run gets from what its config asks for."""

from __future__ import annotations

from collections.abc import Mapping

import torch

from fedmezo.errors import ModelError

AUTO = "auto"
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


def choose_device(use_gpu: bool, index: int) -> tuple[torch.device, list[str]]:
    """The device of a run, and what the user should be told about it.

    Args:
        use_gpu: whether a GPU is wanted; without one the run goes to the CPU, with a notice.
        index: which GPU; below 0 is the first.

    Raises:
        ModelError: there are GPUs, but none of that index.
    """
    if not use_gpu:
        return torch.device("cpu"), []
    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if count == 0:
        return torch.device("cpu"), ["use_gpu is True, but no GPU was found: running on the CPU"]
    if index >= count:
        raise ModelError(f"device is {index}, but this machine has {count} GPU(s): set device to 0 .. {count - 1}")
    return torch.device("cuda", max(index, 0)), []


def choose_dtype(name: str | None, half: bool, device: torch.device) -> tuple[torch.dtype, list[str]]:
    """The precision of the base weights, and what the user should be told about it.

    Args:
        name: `model.dtype`: float32, bfloat16 or float16; None leaves the choice to `half`. `auto` is float32 here: see
            `runs.precision` for what a run makes of it.
        half: `train.is_enable_half`: float16 on a GPU, bfloat16 on a CPU that computes in it, else float32.
        device: where the model will run.

    Raises:
        ModelError: `name` is none of the three.
    """
    if name == AUTO:
        return torch.float32, []
    if name is not None:
        if name not in DTYPES:
            raise ModelError(f"model.dtype is {name!r}; it must be one of {', '.join(DTYPES)}")
        return DTYPES[name], []
    if not half:
        return torch.float32, []
    if device.type != "cpu":
        return torch.float16, []
    if cpu_computes_bfloat16():
        return torch.bfloat16, []
    return torch.float32, [
        "train.is_enable_half is True, but this CPU does not compute in bfloat16: the base stays float32 "
        "(set model.dtype to choose a precision yourself)"
    ]


def cpu_computes_bfloat16() -> bool:
    """Whether the CPU has bfloat16 products of its own; emulated ones are slower than float32."""
    return _cpu_has("avx512_bf16", "amx_bf16", "bf16", "sve_bf16")


def computes_int8(device: torch.device) -> bool:
    """Whether the device has int8 products of its own, which sum exactly in int32."""
    if device.type == "cuda":
        return torch.cuda.get_device_capability(device) >= (7, 5)
    return _cpu_has("avx512_vnni", "amx_int8")


def _cpu_has(*features: str) -> bool:
    report = getattr(torch.cpu, "get_capabilities", dict)  # an older PyTorch cannot tell
    capabilities: Mapping[str, object] = report()
    return any(capabilities.get(name) for name in features)
