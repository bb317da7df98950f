"""The folder of a run: its name, its lock, and the description of the machine that computed it."""

from __future__ import annotations

import fcntl
import json
import math
import os
import platform
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path
from typing import Any, Self

import torch
from pydantic import ConfigDict, Field, model_validator

from fedmezo.atomic import replacing
from fedmezo.config.strict import Format, read_strictly, require_shallow
from fedmezo.errors import RunError

CONFIG_FILE = "config.yaml"
ENVIRONMENT_FILE = "environment.json"
PARTITION_FILE = "partition.json"
LOCK_FILE = ".lock"
ADAPTER_FOLDER = "adapter"
MODEL_FOLDER = "model"
BEST = "_best"
"""Ending of the name of a folder with what the best round made."""

ENVIRONMENT_VERSION = 1
MOST_THREADS = 4096


class Environment(Format):
    """What a resumed run takes over from environment.json; the rest is compared, whatever it holds."""

    model_config = ConfigDict(extra="allow")

    threads: int = Field(ge=1, le=MOST_THREADS)
    """Of each operation on the CPU."""
    lanes: int = Field(ge=1)
    """That shared a forward pass."""

    @model_validator(mode="after")
    def _bounded(self) -> Self:
        require_shallow(self.__pydantic_extra__)
        return self


_PACKAGES = ("fedmezo", "torch", "transformers", "peft", "tokenizers", "numpy", "safetensors")


def new_run_directory(outdir: Path, name: str) -> Path:
    """Make a folder for a run; a number is appended to a name that is taken, so no run overwrites another.

    Raises:
        RunError: the folder cannot be made.
    """
    for attempt in range(1, sys.maxsize):
        path = outdir / (name if attempt == 1 else f"{name}-{attempt}")
        try:
            path.mkdir(parents=True)
        except FileExistsError:
            if not outdir.is_dir():
                raise RunError(f"outdir {outdir} is a file, not a folder") from None
            continue
        except OSError as error:
            raise RunError(f"{path}: the run's folder cannot be made: {error.strerror}") from error
        return path
    raise AssertionError("unreachable")


@contextmanager
def locked(run_dir: Path) -> Iterator[None]:
    """Hold a run's folder alone; the lock goes with the process, however it ends.

    Raises:
        RunError: another process holds it, or the folder cannot be written.
    """
    try:
        file = os.open(run_dir / LOCK_FILE, os.O_RDWR | os.O_CREAT, 0o644)
    except OSError as error:
        raise RunError(f"{run_dir}: the run's folder cannot be written: {error.strerror}") from error
    try:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise RunError(f"{run_dir}: another process is working on this run; wait for it or stop it") from None
        yield
    finally:
        os.close(file)


def write_text(path: Path, text: str) -> None:
    """Write a whole file atomically."""
    with replacing(path) as file:
        file.write(text.encode())


def write_numbers(path: Path, document: Mapping[str, Any]) -> None:
    """Write a JSON document atomically; numbers that are not finite, which JSON does not know, become null."""
    write_text(path, json.dumps(_finite(document), indent=2, allow_nan=False) + "\n")


def environment(device: torch.device, lanes: int, compiled: bool) -> dict[str, object]:
    """What the last bits of a loss may depend on, and what a reader of the results wants to know."""
    on_gpu = device.type == "cuda"
    return {
        "versions": {"python": platform.python_version(), **{name: version(name) for name in _PACKAGES}},
        "machine": torch.cuda.get_device_name(device) if on_gpu else _processor(),
        "device": device.type,
        "instructions": "cuda" if on_gpu else torch.backends.cpu.get_cpu_capability(),
        "threads": torch.get_num_threads(),
        "lanes": lanes,
        "compiled": compiled,
    }


def write_environment(run_dir: Path, description: Mapping[str, object], config: Mapping[str, object]) -> None:
    """Keep the description, the configuration, and when the run started: what a resumed run is compared with."""
    started = time.strftime("%Y-%m-%dT%H:%M:%S%z")
    document = {"version": ENVIRONMENT_VERSION, **description, "started": started, "config": config}
    write_text(run_dir / ENVIRONMENT_FILE, json.dumps(document, indent=2) + "\n")


def read_environment(run_dir: Path) -> dict[str, Any]:
    """Read what `write_environment` wrote.

    Raises:
        RunError: the file is missing, damaged or of another version.
    """
    path = run_dir / ENVIRONMENT_FILE
    try:
        document = json.loads(path.read_text())
    except OSError as error:
        raise RunError(f"{path}: cannot be read: {error.strerror}") from error
    except (ValueError, RecursionError) as error:
        raise RunError(f"{path}: damaged: it is no JSON ({error})") from error
    found = document.get("version") if isinstance(document, dict) else None
    if found != ENVIRONMENT_VERSION:
        raise RunError(f"{path}: format version {repr(found)[:60]}; this fedmezo reads {ENVIRONMENT_VERSION}")
    try:
        read_strictly(Environment, document)
    except ValueError as error:
        raise RunError(f"{path}: damaged: {error}") from error
    return dict(document)


def differences(recorded: Mapping[str, Any], present: Mapping[str, Any], ignored: frozenset[str]) -> list[str]:
    """Say what differs between two nested mappings, key by key; `ignored` names keys, or whole branches, in dots."""
    then, now = dict(_leaves(recorded, "", ignored)), dict(_leaves(present, "", ignored))
    keys = [*then, *(key for key in now if key not in then)]
    return [
        f"{key}: {then.get(key, 'nothing')} then, {now.get(key, 'nothing')} now"
        for key in keys
        if (key in then) != (key in now) or then.get(key) != now.get(key)
    ]


def _leaves(branch: Mapping[str, Any], prefix: str, ignored: frozenset[str]) -> Iterator[tuple[str, Any]]:
    for name, value in branch.items():
        key = f"{prefix}{name}"
        if key in ignored:
            continue
        if isinstance(value, Mapping) and value:
            yield from _leaves(value, f"{key}.", ignored)
        else:
            yield key, value


def _finite(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _processor() -> str:
    """The processor's model name, where the system tells it."""
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()
