"""Where a run's files are: stored so that they are found from any folder, and found again after a move."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fedmezo.config import Config
from fedmezo.data.sources import missing_data


@dataclass(frozen=True, slots=True)
class Moved:
    """What is not where a run had it; None is where it was.

    Args:
        model: the base model, as `model.type` names it.
        data_root: folder of the data files.
        own_code: run Python code that the model brings along, whatever the run's configuration says.
    """

    model: str | None = None
    data_root: Path | None = None
    own_code: bool = False

    def applied(self, config: Config) -> Config:
        """The run's configuration with these places instead of its own."""
        model: dict[str, Any] = {"trust_remote_code": config.model.trust_remote_code or self.own_code}
        if self.model is not None:
            model["type"] = self.model
        sections: dict[str, Any] = {"model": config.model.model_copy(update=model)}
        if self.data_root is not None:
            sections["data"] = config.data.model_copy(update={"root": str(self.data_root)})
        return config.model_copy(update=sections)


NOT_MOVED = Moved()


def anchored(config: Config) -> Config:
    """The configuration with absolute paths for relative ones; a hub name stays one."""
    model = config.model
    if Path(model.name).expanduser().exists():
        model = model.model_copy(update={"type": _absolute(model.name)})
    federate = {key: _absolute(getattr(config.federate, key)) for key in ("save_to", "restore_from")}
    cache = config.llm.cache.model_copy(update={"model": _absolute(config.llm.cache.model)})
    return config.model_copy(
        update={
            "outdir": _absolute(config.outdir),
            "data": config.data.model_copy(update={"root": _absolute(config.data.root)}),
            "model": model,
            "federate": config.federate.model_copy(update=federate),
            "llm": config.llm.model_copy(update={"cache": cache}),
        }
    )


def missing(config: Config) -> list[str]:
    """What a run would need from this machine and not find: a local folder or file of the model, a file of data.

    Raises:
        DataError: `data.type` is no data set at all.
    """
    found = (_missing_model(config.model.name), missing_data(config.data.type, Path(config.data.root)))
    return [text for text in found if text is not None]


def _missing_model(name: str) -> str | None:
    """The same for a model; a name of one or two words may be on the hub, unless its first is a folder here."""
    path = Path(name).expanduser()
    if path.exists() or name.startswith("package:"):
        return None
    is_path = name.startswith(("/", ".", "~")) or len(path.parts) > (3 if name.endswith(".gguf") else 2)
    if is_path or (len(path.parts) > 1 and Path(path.parts[0]).is_dir()):
        return f"model.type is {name}, but there is no such folder or file here"
    return None


def _absolute(path: str) -> str:
    return os.path.abspath(Path(path).expanduser()) if path else path
