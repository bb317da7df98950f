"""Files and messages as an attacker would send them: whatever we read, changed in its bytes or in its meaning.

A change of meaning keeps what accidents break (checksums, chains, lengths), so that it reaches what reads the values.
"""

from __future__ import annotations

import contextlib
import copy
import io
import json
import math
import random
import shutil
import struct
import sys
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any

import torch
import yaml

from fedmezo.cli import main
from fedmezo.config import load_config
from fedmezo.federation.joining import Setup, decode_setup, encode_setup
from fedmezo.machines.flare.project import KIT_FILE, Kit, read_kit, read_project
from fedmezo.machines.settings import WorkerOptions, shared_settings
from fedmezo.machines.worker import load
from fedmezo.results.metrics import METRICS_FILE, read_metrics
from fedmezo.runs.directory import CONFIG_FILE, ENVIRONMENT_FILE, differences, read_environment
from fedmezo.runs.journal import JOURNAL_FILE, read_journal
from fedmezo.runs.replay import open_model
from fedmezo.runs.snapshots import load_moments, load_snapshot, snapshot_path, snapshots_of
from tests.runs import make_base, make_data, write_config

STRANGE: tuple[Any, ...] = (
    *(None, True, False, 0, 1, -1, 2, 255, 2**31, 2**32, 2**53, 2**63, 2**64, -(2**63), 10**30, 10**400),
    *(0.0, -0.0, 0.5, -1.5, 1e-300, 1e300, 2e9, 1.7e308, math.nan, math.inf, -math.inf),
    *("", "x", "0", "a" * 5000, "\x1b[31m\x07", "a\nb", "\ud800", "../../etc/passwd", "0" * 64, "ab" * 32),
    *("scalars", "weights", "gaussian", "float64", "lora", "AAAA", "gH8=", "f3/+/w==", "(.|\\w)*s", "NaN"),
    *([], [[]], [None], [0] * 1000, {}, {"": None}, {"__class__": 1}, [1, 2, 3], ["q_proj"], [["a", [1]]]),
)


def changed_bytes(content: bytes, rng: random.Random) -> bytes:
    """The content with one to four accidents, or acts of a vandal."""
    data = bytearray(content)
    for _ in range(rng.randint(1, 4)):
        at = rng.randrange(len(data) + 1)
        length = rng.choice((1, 2, 4, 16, 256))
        match rng.choice(("flip", "flip", "set", "cut", "drop", "insert", "repeat", "number")):
            case "flip" if at < len(data):
                data[at] ^= 1 << rng.randrange(8)
            case "set":
                data[at : at + length] = bytes([rng.choice((0, 1, 127, 128, 255))]) * length
            case "cut":
                del data[at:]
            case "drop":
                del data[at : at + length]
            case "insert":
                data[at:at] = rng.randbytes(length)
            case "repeat":
                data[at:at] = data[at : at + length] * rng.choice((1, 3, 100))
            case "number":
                data[at : at + 4] = struct.pack("<I", rng.choice((0, 1, 2**16, 2**28, 2**31, 2**32 - 1)))
    return bytes(data)


def changed_value(value: Any, rng: random.Random) -> Any:
    """A JSON value with one to three places changed."""
    root = [copy.deepcopy(value)]
    for _ in range(rng.choice((1, 1, 1, 2, 3))):
        holder, key = rng.choice(list(_places(root)))
        match rng.choice(("strange", "strange", "strange", "near", "remove", "add", "wrap", "deep")):
            case "strange":
                holder[key] = copy.deepcopy(rng.choice(STRANGE))
            case "near":
                holder[key] = _near(holder[key], rng)
            case "remove" if holder is not root:
                del holder[key]
            case "add" if isinstance(holder, dict):
                holder[rng.choice(("more", "seed", "", "\x1b", "__init__"))] = copy.deepcopy(rng.choice(STRANGE))
            case "add" if holder is not root:
                holder.insert(key, copy.deepcopy(rng.choice(STRANGE)))
            case "wrap":
                holder[key] = [holder[key]] * rng.choice((1, 2, 50))
            case "deep":
                holder[key] = _nested(rng.choice((30, 300)))
    return root[0]


def _places(holder: Any) -> list[tuple[Any, Any]]:
    found = []
    for key in range(len(holder)) if isinstance(holder, list) else list(holder):
        found.append((holder, key))
        if isinstance(holder[key], list | dict):
            found += _places(holder[key])
    return found


def _near(value: Any, rng: random.Random) -> Any:
    """Something of the same kind."""
    if isinstance(value, bool):
        return not value
    if isinstance(value, int | float):
        third = value // 3 if isinstance(value, int) and abs(value) > sys.float_info.max else value / 3
        return rng.choice((value + 1, -value, value * 1000, third, value * 10**9))
    if isinstance(value, str):
        return rng.choice((value[:-1], value + value, value[::-1], value.upper(), value.replace("a", "b")))
    return value


def _nested(depth: int) -> list[Any]:
    value: list[Any] = []
    for _ in range(depth):
        value = [value]
    return value


def dump(value: Any) -> str:
    """JSON as a forger writes it, who may write NaN, too."""
    return json.dumps(value, separators=(",", ":"))


def chained(lines: list[Any]) -> bytes:
    """A journal of these lines, each without its chain."""
    chain, texts = "0" * 32, []
    for fields in lines:
        body = dump(fields)
        chain = sha256((chain + body).encode(errors="replace")).hexdigest()[:32]
        texts.append(f'{body[:-1]},"chain":"{chain}"}}\n')
    return "".join(texts).encode(errors="replace")


def forged_journal(content: bytes, rng: random.Random) -> bytes:
    """A journal with a line that says something else, or is gone, doubled or in another place, whole in its chain."""
    lines = [json.loads(line) for line in content.splitlines()]
    for fields in lines:
        del fields["chain"]
    at = rng.choice((0, 0, rng.randrange(len(lines))))
    match rng.choice(("value", "value", "value", "value", "drop", "double", "swap")):
        case "value":
            fields = changed_value(lines[at], rng)
            lines[at] = fields if isinstance(fields, dict) else {"kind": fields}
        case "drop":
            del lines[at]
        case "double":
            lines.insert(at, lines[at])
        case "swap":
            lines[at], lines[-1] = lines[-1], lines[at]
    return chained(lines)


def forged_log(content: bytes, rng: random.Random) -> bytes:
    """A published log with another document or other columns, under a checksum that fits; now and then a bomb."""
    body = zlib.decompress(content[37:])
    (length,) = struct.unpack_from("<I", body)
    head, columns = body[4 : 4 + length], body[4 + length :]
    match rng.choice(("document", "document", "document", "columns", "columns", "length", "bomb")):
        case "document":
            head = dump(changed_value(json.loads(head), rng)).encode(errors="replace")
        case "columns":
            columns = changed_bytes(columns, rng)
        case "length":
            length = rng.choice((0, 1, length - 1, length + 1, 2**31, 2**32 - 1))
            return _packed(content, struct.pack("<I", length) + head + columns)
        case "bomb":
            size = rng.choice((1 << 20, 1 << 24, 1 << 28))
            return _packed(content, struct.pack("<I", len(head)) + head + columns + bytes(size))
    return _packed(content, struct.pack("<I", len(head)) + head + columns)


def _packed(content: bytes, body: bytes) -> bytes:
    packed = zlib.compress(body, 1)
    return content[:5] + sha256(packed).digest() + packed


def forged_json(content: bytes, rng: random.Random) -> bytes:
    """A JSON document with another value in it."""
    return dump(changed_value(json.loads(content), rng)).encode(errors="replace")


def forged_lines(content: bytes, rng: random.Random) -> bytes:
    """A file of JSON lines with another value in one of them."""
    lines = content.splitlines()
    at = rng.randrange(len(lines))
    lines[at] = forged_json(lines[at], rng)
    return b"\n".join(lines) + b"\n"


def forged_tensors(content: bytes, rng: random.Random) -> bytes:
    """A safetensors file whose header says something else."""
    (length,) = struct.unpack_from("<Q", content)
    head = dump(changed_value(json.loads(content[8 : 8 + length]), rng)).encode(errors="replace")
    return struct.pack("<Q", len(head)) + head + content[8 + length :]


@dataclass(frozen=True)
class Kind:
    """Files of one kind.

    Args:
        name: what they are.
        content: of a good one.
        forge: changes its meaning.
        place: where a command expects it.
        read: reads what is there, as a command does; FedMeZOError is how it refuses.
    """

    name: str
    content: bytes
    forge: Callable[[bytes, random.Random], bytes]
    place: Path
    read: Callable[[], object]

    def mutated(self, rng: random.Random) -> bytes:
        """One of its forms that nobody honest wrote."""
        return self.forge(self.content, rng) if rng.random() < 0.7 else changed_bytes(self.content, rng)


def file_kinds(folder: Path) -> list[Kind]:
    """Every kind of file that somebody else may have written, each with a good one of a small run in the folder."""
    run, log, kit = _run(folder), folder / "tune.fmz", folder / "kit"
    assert _command("export", run, "--as-log", log) == 0
    kit.mkdir()
    Kit(kit, "north", ("north", "south"), "localhost", 8002, plaintext=False).write()
    project = folder / "project.yml"
    project.write_text("server: fl.example.org\nport: 8002\nsites: [north, south]\n")
    journal, environment, metrics = (run / name for name in (JOURNAL_FILE, ENVIRONMENT_FILE, METRICS_FILE))
    snapshot, adapter = snapshot_path(snapshots_of(run), 2), run / "adapter" / "adapter_model.safetensors"
    settings = folder / "settings.json"
    settings.write_text(dump(shared_settings(load_config(run / CONFIG_FILE).config, "float32")))
    expected = read_journal(journal).hashes[2]
    return [
        _kind("journal", journal, forged_journal, lambda: _command("replay", run)),
        _kind("journal to resume", journal, forged_journal, lambda: _resume(run, folder)),
        _kind("journal to export", journal, forged_journal, lambda: _export(run, folder)),
        _kind("published log", log, forged_log, lambda: _import(log, folder)),
        _kind("kit", kit / KIT_FILE, forged_json, lambda: read_kit(kit, server=False)),
        _kind("project", project, _forged_yaml, lambda: read_project(project)),
        _kind("environment", environment, forged_json, lambda: _environment(run)),
        _kind("metrics", metrics, forged_lines, lambda: read_metrics(metrics)),
        _kind("snapshot", snapshot, forged_tensors, lambda: _snapshot(run, expected)),
        _kind("adapter", adapter, forged_tensors, lambda: _adapter(run)),
        _kind("configuration", run / CONFIG_FILE, _forged_yaml, lambda: load_config(run / CONFIG_FILE)),
        _kind("settings", settings, forged_json, lambda: _work(settings, folder)),
    ]


def _kind(name: str, place: Path, forge: Callable[[bytes, random.Random], bytes], read: Callable[[], object]) -> Kind:
    return Kind(name, place.read_bytes(), forge, place, read)


def _run(folder: Path) -> Path:
    """A run of three rounds with a snapshot after the second, started and ended in this process."""
    rounds = {"federate.total_round_num": 3, "federate.save_freq": 2, "eval.freq": 0, "data.keep_tokens": False}
    config = write_config(folder / "run.yaml", make_base(folder / "base"), make_data(folder / "data"), **rounds)
    assert _command("run", config, "expname=run") == 0
    return folder / "runs" / "run"


def _command(*words: str | Path) -> int:
    """A command's exit code; what it prints is not shown."""
    said = io.StringIO()
    with contextlib.redirect_stdout(said), contextlib.redirect_stderr(said):
        code = main([str(word) for word in words])
    assert code in (0, 2), (code, said.getvalue())
    return code


def _resume(run: Path, folder: Path) -> int:
    """In a copy, as a run that is not ended goes on."""
    copy = folder / "copy"
    shutil.rmtree(copy, ignore_errors=True)
    shutil.copytree(run, copy)
    return _command("resume", copy)


def _export(run: Path, folder: Path) -> int:
    log = folder / "again.fmz"
    log.unlink(missing_ok=True)
    return _command("export", run, "--as-log", log)


def _import(log: Path, folder: Path) -> int:
    out = folder / "out"
    shutil.rmtree(out, ignore_errors=True)
    return _command("import", log, "--model", folder / "base", "--out", out)


def _forged_yaml(content: bytes, rng: random.Random) -> bytes:
    """A configuration or project that says something else; JSON is YAML."""
    return dump(changed_value(yaml.safe_load(content), rng)).encode()


def _environment(run: Path) -> None:
    """What resuming a run does with what it reads of the machine."""
    recorded = read_environment(run)
    torch.set_num_threads(min(recorded["threads"], 2))
    min(recorded["lanes"], 1)
    differences(recorded, {"versions": {}}, frozenset())


def _snapshot(run: Path, expected: str) -> None:
    load_snapshot(snapshots_of(run), 2, expected)
    load_moments(snapshots_of(run), 2)


def _adapter(run: Path) -> None:
    journal = read_journal(run / JOURNAL_FILE)
    open_model(journal.header, journal.header.base).read(run)


def _work(settings: Path, folder: Path) -> None:
    """What a site does with the settings of a setup message."""
    digest = "0" * 64
    message = encode_setup(Setup(0, 0, digest, digest, {})).removesuffix(b"{}") + settings.read_bytes()
    options = WorkerOptions("", str(folder / "data" / "words.jsonl"), str(folder / "base"), keep_tokens=False)
    load(options, decode_setup(message))
