"""Upload to the Hugging Face hub."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from huggingface_hub import CommitOperationAdd, HfApi
from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalTokenNotFoundError

from fedmezo.errors import ConfigError, RunError, StorageError
from fedmezo.handover.source import folder_to_hand_over
from fedmezo.runs.card import public_name

_ADAPTER_CONFIG = "adapter_config.json"
_BASE_KEY = "base_model_name_or_path"
_NETWORK_ERRORS: tuple[type[BaseException], ...] = (OSError, HfHubHTTPError.__mro__[1])
"""A failed connection: an OSError, or an error of the HTTP library, which the hub's client has changed once."""


def push(run: Path, repository: str, *, best: bool = False, base: str | None = None, private: bool = False) -> str:
    """Upload an adapter (or a whole model) with its card as one commit; returns the repository's address.

    Args:
        run: a run's folder, or that of an adapter or a model.
        repository: OWNER/NAME; made if it is not there.
        best: the adapter of the best round.
        base: what others know the base model by, where the adapter names a folder of this machine.
        private: of a repository that is made.

    Raises:
        ConfigError: the repository's name cannot be one, or the adapter's base has no name that others know.
        RunError: there is nothing to upload.
        StorageError: the hub refused, or cannot be reached.
    """
    folder = folder_to_hand_over(run, best=best)
    operations = [
        CommitOperationAdd(path.relative_to(folder).as_posix(), _content(path, base))
        for path in sorted(folder.rglob("*"))
        if path.is_file() and not path.name.startswith(".")
    ]
    if not operations:
        raise RunError(f"{folder}: there is nothing in it to upload")
    hub = HfApi()
    try:
        hub.create_repo(repository, private=private, exist_ok=True)
        done = hub.create_commit(repository, operations, commit_message="Upload what fedmezo tuned")
    except HFValidationError as error:
        raise ConfigError(f"REPO {repository!r}: {error}") from error
    except LocalTokenNotFoundError as error:
        raise ConfigError("the hub wants to know who you are: run `hf auth login`, or set HF_TOKEN") from error
    except HfHubHTTPError as error:
        raise StorageError(f"{repository}: the hub refused: {str(error).splitlines()[0]}") from error
    except _NETWORK_ERRORS as error:
        raise StorageError(f"{repository}: the hub ({hub.endpoint}) cannot be reached: {error}") from error
    return str(done.repo_url)


def _content(path: Path, base: str | None) -> Path | bytes:
    """What is uploaded of a file: its bytes, but for the name of the base model in an adapter's configuration."""
    if path.name != _ADAPTER_CONFIG:
        return path
    content: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    named = str(content.get(_BASE_KEY) or "")
    if base is None and public_name(named) != named:
        raise ConfigError(
            f"{path}: the adapter's base model is a folder of this machine; say with --base what others know it by"
        )
    return json.dumps(content | {_BASE_KEY: base or named}, indent=2, sort_keys=True).encode()
