"""Everything that is to be known of a GPU, in one command and under nine minutes: tests, hashes, speed and memory.

    python -m benchmarks.gpu --out DIR                         # one card
    python -m benchmarks.gpu --out DIR --device cpu --quick    # the same code to its end where there is none

Writes gpu.md and gpu.json: the tests that need a GPU; whether directions, replay and fingerprints have the CPU's bits;
a 3B shape with LoRA of rank 128 in each number format, called and captured, beside the reference's and MeZO's loops and
back-propagation; and memory above the base at 1,000 tokens. With `--quick` the shape is tiny.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch

from benchmarks import common, formats
from benchmarks.common import Row
from benchmarks.step_time import CLIENTS, backward
from fedmezo.models.fingerprint import base_hash
from fedmezo.models.lane_budget import longest_batch, peak_memory_of
from fedmezo.models.quantised import SCHEMES
from fedmezo.zo.arithmetic import state_hash
from fedmezo.zo.noise import Noise, Purpose, Stream
from fedmezo.zo.replay import Address, Pace, apply_, linear_moves

TEST_SECONDS = 150
"""After which the tests are given up, so that the rest has its time."""
ELEMENTS = 5_000_000
LONGEST = 1000
MIB = 1 << 20


def main() -> None:
    """Measure, print and write."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--out", type=Path, required=True, metavar="DIR", help="folder for gpu.md and gpu.json")
    parser.add_argument("--device", default="cuda", choices=["cuda", "cpu"])
    parser.add_argument("--quick", action="store_true", help="a tiny shape, and few repetitions")
    options = parser.parse_args()
    if options.device == "cuda" and not torch.cuda.is_available():
        parser.error("there is no GPU here: --device cpu --quick tries the same code without one")
    options.shape, options.rank = ("tiny", 8) if options.quick else ("3b", 128)
    options.dtype = "float16" if options.device == "cuda" else "bfloat16"
    options.out.mkdir(parents=True, exist_ok=True)
    found: dict[str, list[Row]] = {}
    parts: dict[str, Callable[[], list[Row]]] = {
        "tests": partial(tests, options.device),
        "bits of the CPU": partial(hashes, options.device),
        "speed": partial(speed, options),
        "memory": partial(memory, options),
    }
    for name, measure in parts.items():
        started = time.perf_counter()
        found[name] = [*measure(), Row(f"all of {name}", time.perf_counter() - started, "s")]
        write(found, options)  # after each part: what was measured is kept whatever comes next
    print((options.out / "gpu.md").read_text())


def tests(device: str) -> list[Row]:
    """Exit code of the tests that need a GPU; without one they are collected and skipped."""
    command = [sys.executable, "-m", "pytest", "-q", "-n", "0", "tests/integration/test_gpu.py"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=TEST_SECONDS, check=False)
    except subprocess.TimeoutExpired:
        return [Row(f"tests took more than {TEST_SECONDS} s", 1, "exit code")]
    said = done.stdout.strip().splitlines()
    return [Row(f"{said[-1].strip('= ') if said else 'nothing'}, {device}", done.returncode, "exit code")]


def hashes(device: str) -> list[Row]:
    """1 where the device gives the CPU's bits, 0 where not."""
    moves = linear_moves(Pace(1e-3), [0.5, -3.0, 17.0], Address(7, 0, 0), directions=1)
    theta = torch.linspace(-1, 1, ELEMENTS)
    rows = []
    for name in ("gaussian", "rademacher"):
        streams = [Stream(7, Purpose.DIRECTION, round=1, client=client) for client in range(2)]
        there = Noise(name).directions(streams, 3, ELEMENTS, device).cpu()
        rows.append(_same(f"directions, {name}", torch.equal(there, Noise(name).directions(streams, 3, ELEMENTS))))
        replayed = [state_hash(apply_(theta.to(where, copy=True), moves, Noise(name))) for where in (device, "cpu")]
        rows.append(_same(f"replay, {name}", replayed[0] == replayed[1]))
    for scheme in SCHEMES:
        base = common.base_model("tiny", "float32", "cpu", scheme)
        here = base_hash(base)
        if device == "cuda":
            base.to(device=torch.device(device))  # type: ignore[call-arg]  # wrapped without its annotations
        rows.append(_same(f"fingerprint of the base, {scheme}", base_hash(base) == here))
    return rows


def speed(options: argparse.Namespace) -> list[Row]:
    """Steps in each number format."""
    lengths = list(common.LENGTHS[:: 4 if options.quick else 1])
    names = [options.dtype, *(f"{options.dtype}+{scheme}" for scheme in SCHEMES[1:])]
    loops = "float32" if options.device == "cpu" else options.dtype
    return formats.measure(options, names, lengths, loops, repeats=1 if options.quick else 3)


def memory(options: argparse.Namespace) -> list[Row]:
    """MiB above the base of a step of each kind on a long batch."""
    device = torch.device(options.device)
    longest = longest_batch(1, 128 if options.quick else LONGEST, device)
    model = common.adapted(common.base_model(options.shape, options.dtype, options.device), options.rank)
    theta = model.flat()
    model.use_lanes(2 * CLIENTS)

    def forward(lanes: int) -> None:
        model.use_lanes(lanes)
        model.losses(theta.expand(lanes, -1).contiguous(), [longest] * lanes)

    forms: dict[str, Callable[[], object]] = {
        "one lane": lambda: forward(1),
        f"{2 * CLIENTS} lanes": lambda: forward(2 * CLIENTS),
        "back-propagation": lambda: backward(model, longest),
    }
    peaks = {name: peak_memory_of(work, device) for name, work in forms.items()}
    model.checkpoint_gradients()
    peaks["back-propagation, checkpointed"] = peak_memory_of(lambda: backward(model, longest), device)
    return [Row(f"{name}, above the base", peak / MIB, "MiB") for name, peak in peaks.items()]


def write(found: dict[str, list[Row]], options: argparse.Namespace) -> None:
    """What was measured so far, as Markdown and as JSON."""
    about = common.circumstances(options)
    lines = [f"# GPU: {about['machine']}", "", f"commit {about['commit']}, {options.shape}, {options.dtype}"]
    for part, rows in found.items():
        lines += ["", f"## {part}", "", "| | value | unit |", "|---|---|---|"]
        lines += [f"| {row.name} | {row.value:.4g} | {row.unit} |" for row in rows]
    (options.out / "gpu.md").write_text("\n".join(lines) + "\n")
    document = {**about, "parts": {part: [[r.name, r.value, r.unit] for r in rows] for part, rows in found.items()}}
    (options.out / "gpu.json").write_text(json.dumps(document, indent=1) + "\n")


def _same(name: str, same: bool) -> Row:
    return Row(name, float(same), "same")


if __name__ == "__main__":
    main()
