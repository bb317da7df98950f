"""All parameters beside LoRA: python -m benchmarks.whole --shape 135m --threads 2. Steps, memory, closing a round.

A round of three clients with 30 local steps, as the run makes it; a step of each form in turn, from the first, when a
client has no moves of its own, to the last, when it has 29. The closing is that of the whole round, hash apart.

    python -m benchmarks.whole --shape 3b --threads 2 --closing-only   # 14 GB
"""

from __future__ import annotations

import statistics
from functools import partial
from typing import Any, cast

import torch

from benchmarks import common
from benchmarks.common import Row
from fedmezo.models.label_loss import LabelOnlyPath
from fedmezo.models.lane_budget import peak_memory_of
from fedmezo.models.lanes import join
from fedmezo.models.language_model import LanguageModel
from fedmezo.models.whole import WholeLM
from fedmezo.records import Batch
from fedmezo.zo.arithmetic import round_coefficient, state_hash
from fedmezo.zo.local import LocalThetas, Probe
from fedmezo.zo.low_rank import LowRankNoise
from fedmezo.zo.noise import Directions, Noise, Purpose, Stream
from fedmezo.zo.replay import Move, apply_

MIB = 1 << 20
CLIENTS, STEPS = 3, 30
RATE = 1e-6


def main() -> None:
    """Measure and print."""
    parser = common.arguments(__doc__)
    parser.add_argument("--direction-rank", type=int, default=1, help="r of the directions")
    parser.add_argument("--closing-only", action="store_true")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    base = common.base_model(options.shape, options.dtype, options.device)
    no_tokenizer: Any = None  # nothing is saved
    whole = WholeLM(base, no_tokenizer)
    noise = LowRankNoise(options.direction_rank, whole.segments)
    steps = 4 if options.quick else STEPS
    rows = _closing(whole, noise, steps)
    if not options.closing_only:
        rows += _memory(whole, noise, common.batches([common.LENGTHS[-2]] * CLIENTS, base.config.vocab_size, "cpu"))
        other = common.adapted(common.base_model(options.shape, options.dtype, options.device), options.rank)
        rows += _steps({"all parameters": (whole, noise), "LoRA": (other, Noise())}, steps)
    common.report("whole", rows, options)


def _closing(model: LanguageModel, noise: Directions, steps: int) -> list[Row]:
    theta = model.initial()
    moves = [
        Move(_stream(client, step), round_coefficient(RATE * (-0.9) ** step))
        for client in range(CLIENTS)
        for step in range(steps)
    ]
    times = [common.seconds(lambda: apply_(theta, moves, noise), theta.device.type) for _ in range(3)]
    hashing = common.seconds(lambda: state_hash(theta), theta.device.type)
    return [
        Row(f"closing a round of {len(moves)} moves", statistics.median(times), "s"),
        Row("elements subtracted", len(theta) * len(moves) / statistics.median(times) / 1e9, "G/s"),
        Row("state hash", hashing, "s"),
    ]


def _memory(model: WholeLM, noise: Directions, batches: list[Batch]) -> list[Row]:
    """What the last step of a round allocates, beside a forward pass of the same rows without any lanes."""
    model.use_lanes(2 * CLIENTS)
    theta = model.initial()
    rows = join([batch for batch in batches for _ in range(2)])
    path = cast(LabelOnlyPath, model._token_losses)

    def plain() -> None:
        with torch.inference_mode():
            path(rows)

    def step() -> None:
        thetas = model.local_thetas(theta, CLIENTS, noise, 2 * CLIENTS)
        for client in range(CLIENTS):
            thetas.move_(client, [Move(_stream(client, step), round_coefficient(RATE)) for step in range(STEPS - 1)])
        _losses(thetas, STEPS - 1, batches)

    peaks = {"plain forward": peak_memory_of(plain, model.device), "last step": peak_memory_of(step, model.device)}
    found = [Row(f"{name}, above the weights", peak / MIB, "MiB") for name, peak in peaks.items()]
    return [*found, Row("last step / plain forward", peaks["last step"] / peaks["plain forward"], "times")]


def _steps(forms: dict[str, tuple[LanguageModel, Directions]], steps: int) -> list[Row]:
    thetas = {}
    for name, (model, noise) in forms.items():
        model.use_lanes(2 * CLIENTS)
        thetas[name] = model.local_thetas(model.initial(), CLIENTS, noise, 2 * CLIENTS)
    times: dict[str, list[float]] = {name: [] for name in forms}
    for step in range(steps):
        lengths = [common.LENGTHS[(step + client) % len(common.LENGTHS)] for client in range(CLIENTS)]
        batches = common.batches(lengths, 32000, "cpu")
        for name, own in thetas.items():
            times[name].append(common.seconds(partial(_step, own, step, batches), "cpu"))
    whole, lora = times.values()
    ratios = [a / b for a, b in zip(whole, lora, strict=True)]
    found = [Row(f"step, {name}", statistics.median(values), "s") for name, values in times.items()]
    return [
        *found,
        Row("all parameters / LoRA, median of the steps", statistics.median(ratios), "times"),
        Row("... of the first five", statistics.median(ratios[:5]), "times"),
        Row("... of the last five", statistics.median(ratios[-5:]), "times"),
        Row("... of the sums", sum(whole) / sum(lora), "times"),
    ]


def _step(thetas: LocalThetas, step: int, batches: list[Batch]) -> None:
    _losses(thetas, step, batches).tolist()
    for client in range(CLIENTS):
        thetas.move_(client, [Move(_stream(client, step), round_coefficient(RATE))])


def _losses(thetas: LocalThetas, step: int, batches: list[Batch]) -> torch.Tensor:
    probes = [
        Probe(batch, _stream(client, step), amount)
        for client, batch in enumerate(batches)
        for amount in (round_coefficient(common.EPS), -round_coefficient(common.EPS))
    ]
    return thetas.losses([client for client in range(CLIENTS) for _ in range(2)], probes)


def _stream(client: int, step: int) -> Stream:
    return Stream(1, Purpose.DIRECTION, 0, client, step)


if __name__ == "__main__":
    main()
