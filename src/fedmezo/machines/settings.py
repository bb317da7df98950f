"""The part of a configuration that client work depends on: what a server tells the sites, and what they make of it.

Nothing else leaves the server: no paths, no names, no accounts. A site puts its own model, data and device in.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from pydantic import Field, ValidationError

from fedmezo.config.checks import conflicts
from fedmezo.config.markup import shorten
from fedmezo.config.schema import MAX_CLIENTS, Config, Section
from fedmezo.config.strict import first_fault
from fedmezo.errors import ConfigError

SHARED: dict[str, Any] = {
    "seed": True,
    "federate": {"protocol": True, "total_round_num": True, "method": True},
    "fedopt": True,
    "fedprox": True,
    "data": {"format": True, "template": True},
    "llm": {"tok_len": True, "adapter": True},
    "dataloader": True,
    "train": True,
    "grad": True,
    "trainer": True,
}
"""The keys that are sent; those of `model` that say how it computes go with them, as the server resolved them."""
SUMS = "sums"
"""Beside them, under secure sums; see `Sums`."""


@dataclass(frozen=True, slots=True)
class WorkerOptions:
    """What the site's owner decides; nothing of it comes from the server."""

    socket: str  # where to listen
    data: str  # file of examples
    model: str  # base model: a folder, a hub name or `bundled`
    use_gpu: bool = False
    device: int = -1
    cache: str = ""  # where models from the hub are kept
    keep_tokens: bool = True  # in the user's cache, so that the next run need not make them again
    own_code: bool = False  # run Python code that the model brings along

    def command(self) -> list[str]:
        """The words that start such a worker."""
        return [sys.executable, "-m", "fedmezo.machines.worker", json.dumps(asdict(self))]


class Sums(Section):
    """How a site's reports are summed with others', where the server sees the sums alone."""

    clients: int = Field(ge=3, le=MAX_CLIENTS)
    """In a round."""
    groups: int = Field(ge=1, le=MAX_CLIENTS)
    """That they are dealt into."""
    equal: bool
    """Every report weighs the same."""
    clip: float = Field(ge=0)
    """Largest norm of a client's scalars, where noise hides clients; 0 for none."""
    noise_multiplier: float = Field(ge=0)
    """Of that noise."""


def shared_settings(config: Config, dtype: str) -> dict[str, Any]:
    """What the sites are told; `dtype` is that of the server's base weights."""
    settings = config.model_dump(mode="json", include=SHARED)
    federate, privacy = config.federate, config.privacy
    if privacy.level == "example":
        settings["privacy"] = privacy.model_dump(mode="json")
    if federate.secure_aggregation:
        is_noisy = privacy.level == "client"
        settings[SUMS] = Sums(
            clients=federate.cohort_size,
            groups=federate.direction_groups,
            equal=federate.ignore_weight,
            clip=privacy.clip if is_noisy else 0.0,
            noise_multiplier=(privacy.noise_multiplier or 0.0) if is_noisy else 0.0,
        ).model_dump(mode="json")
    model = {"dtype": dtype, "quantization": config.model.quantization, "weights": config.model.weights}
    return {**settings, "model": model}


def sums_of(settings: Mapping[str, Any]) -> Sums | None:
    """How the server's settings say that reports are summed; None where it sees each of them.

    Raises:
        ConfigError: they do not say it as servers do.
    """
    if SUMS not in settings:
        return None
    try:
        return Sums.model_validate(settings[SUMS])
    except ValidationError as error:
        raise ConfigError(f"the server's settings are not sound: {first_fault(Sums, error)}") from error


def site_config(settings: Mapping[str, Any], options: WorkerOptions) -> Config:
    """A site's configuration: the server's settings, and its own model, data and device.

    Raises:
        ConfigError: the server sent what it should not, or what does not fit together.
    """
    settings = {name: section for name, section in settings.items() if name != SUMS}
    model = {"dtype": True, "quantization": True, "weights": True}
    _require_shared(settings, {**SHARED, "privacy": True, "model": model}, "")
    try:
        config = Config.model_validate(_with_own(settings, options))
    except ValidationError as error:
        raise ConfigError(f"the server's settings are not sound: {first_fault(Config, error)}") from error
    if found := [conflict.text for conflict in conflicts(config)]:
        raise ConfigError(f"the server's settings do not fit together: {'; '.join(found)}")
    return config


def _require_shared(settings: Mapping[str, Any], shared: Mapping[str, Any], above: str) -> None:
    """Every key must be one that servers send."""
    if extra := sorted(set(settings) - set(shared)):
        names = ", ".join(f"{above}{shorten(name)[1:-1]}" for name in extra)
        raise ConfigError(f"the server sent settings that are none of its business: {names}")
    for name, below in shared.items():
        section = settings.get(name)
        if isinstance(below, dict) and isinstance(section, Mapping):
            _require_shared(section, below, f"{above}{name}.")


def _with_own(settings: Mapping[str, Any], options: WorkerOptions) -> dict[str, Any]:
    """The server's settings with the site's own in place of theirs; a section that is none is left to the schema."""
    own: dict[str, Any] = {
        **settings,
        "use_gpu": options.use_gpu,
        "device": options.device,
    }
    sites: dict[str, dict[str, Any]] = {
        "data": {"type": "own.jsonl", "keep_tokens": options.keep_tokens},
        "model": {"type": options.model, "trust_remote_code": options.own_code},
        "federate": {"client_num": 1},  # it computes for itself alone
        "llm": {"cache": {"model": options.cache}},
    }
    for name, keys in sites.items():
        section = own.get(name, {})
        own[name] = {**section, **keys} if isinstance(section, Mapping) else section
    return own
