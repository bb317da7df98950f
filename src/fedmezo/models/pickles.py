"""Weights in pickles, an old form that can hold code: looked at before anything is loaded from them."""

from __future__ import annotations

import zipfile
from pathlib import Path

from torch.serialization import get_unsafe_globals_in_checkpoint

from fedmezo.errors import ModelError

_NAMES = ("pytorch_model*.bin", "adapter_model*.bin")
"""What transformers and PEFT load; what a trainer leaves beside them, such as training_args.bin, they do not."""


def require_no_code(folder: Path) -> None:
    """Refuse a model or an adapter whose pickles name more than tensors are made of.

    What is no archive of today's torch is left to its loader, which takes tensors alone.

    Raises:
        ModelError: naming the file and what is in it.
    """
    for path in sorted(path for pattern in _NAMES for path in folder.glob(pattern)):
        if not zipfile.is_zipfile(path):
            continue
        try:
            found = get_unsafe_globals_in_checkpoint(path)
        except (RuntimeError, ValueError, OSError, EOFError) as error:
            raise ModelError(f"{path}: the weights are damaged: {error}") from error
        if found:
            raise ModelError(
                f"{path}: besides weights it holds {', '.join(sorted(found)[:5])}, which could be code; ask for the "
                "weights as safetensors"
            )
