"""Federated fine-tuning of language models with zeroth-order optimisation.

`fedmezo.run`, `tune`, `resume`, `load_run`, `replay` and `check` are documented in `fedmezo.api`. They are imported
when they are asked for, since the command reads and checks configurations without PyTorch.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from fedmezo.api import RoundEvent, Run, check, load_run, replay, resume, run, tune

__version__ = "0.1.0"
__all__ = ["RoundEvent", "Run", "check", "load_run", "replay", "resume", "run", "tune"]


def __getattr__(name: str) -> Any:
    """PEP 562: a name of the Python API, on its first use."""
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    import_module("fedmezo.models")  # first, since it keeps PEFT from importing what takes a second
    return getattr(import_module("fedmezo.api"), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
