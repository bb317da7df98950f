"""A saved adapter's checksum, kept in its weights file: a bit that flipped on a disk gives an error, not other weights.

It covers the weights and what their configuration says of them. Where the base model is may change, and is left out.
Files without one, which PEFT and others write, are taken as they are.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load
from safetensors.torch import save
from torch import Tensor

from fedmezo.atomic import read_whole
from fedmezo.errors import ModelError

CONFIG_FILE = "adapter_config.json"
WEIGHTS_FILE = "adapter_model.safetensors"
OLD_WEIGHTS_FILE = "adapter_model.bin"
KEY = "fedmezo.checksum"
"""Of the file's metadata."""
_MAY_CHANGE = ("base_model_name_or_path", "revision", "inference_mode", "peft_version")
_LENGTH_BYTES = _ALIGNMENT = 8


def with_checksum(config: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> bytes:
    """The weights file of an adapter (float32 on the CPU); its checksum covers `config`, as JSON has it, too."""
    content = save(dict(tensors), metadata={"format": "pt"})
    header, data = _parted(content)
    value = _checksum(config, {name: tensor.numpy() for name, tensor in tensors.items()})
    header["__metadata__"] = {"format": "pt", KEY: value}  # by hand: safetensors writes two keys in random order
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % _ALIGNMENT)
    return len(text).to_bytes(_LENGTH_BYTES, "little") + text + data


def check_adapter(folder: Path) -> None:
    """Make sure that a saved adapter is what was written, if it says so itself.

    Raises:
        ModelError: a file is damaged or cannot be read.
    """
    path = folder / WEIGHTS_FILE
    if not path.exists() and (folder / OLD_WEIGHTS_FILE).is_file():
        return
    try:
        content = read_whole(path)
        tensors = load(content)
        expected = _parted(content)[0].get("__metadata__", {}).get(KEY)
        config = json.loads(read_whole(folder / CONFIG_FILE))
    except OSError as error:
        raise ModelError(f"{error.filename or path}: the adapter cannot be read: {error.strerror}") from error
    except SafetensorError as error:
        raise ModelError(f"{path}: the file is damaged or cut ({error}); {_REMEDY}") from error
    except (ValueError, RecursionError, KeyError, TypeError) as error:
        raise ModelError(f"{folder}: {CONFIG_FILE} or {WEIGHTS_FILE} is damaged ({error}); {_REMEDY}") from error
    if expected is not None and (not isinstance(config, dict) or _checksum(config, tensors) != expected):
        raise ModelError(
            f"{folder}: {WEIGHTS_FILE} or {CONFIG_FILE} is not what was written (its checksum does not fit); {_REMEDY}"
        )


def _checksum(config: Mapping[str, Any], tensors: Mapping[str, np.ndarray[Any, Any]]) -> str:
    lasting = {key: value for key, value in config.items() if key not in _MAY_CHANGE}
    digest = sha256(json.dumps(lasting, sort_keys=True).encode())
    for name in sorted(tensors):
        digest.update(json.dumps([name, str(tensors[name].dtype), tensors[name].shape]).encode())
        digest.update(np.ascontiguousarray(tensors[name], dtype="<f4").tobytes())
    return digest.hexdigest()


def _parted(content: bytes) -> tuple[dict[str, Any], bytes]:
    """The header of a sound file, and the tensors' bytes."""
    start = _LENGTH_BYTES + int.from_bytes(content[:_LENGTH_BYTES], "little")
    header: dict[str, Any] = json.loads(content[_LENGTH_BYTES:start])
    return header, content[start:]


_REMEDY = "copy it again, or make it anew from the journal: fedmezo replay RUN --out FOLDER"
