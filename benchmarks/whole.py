"""All parameters beside LoRA: python -m benchmarks.whole. Steps, memory, bytes, closing a round, a long replay.

A round of three clients with 30 local steps, as the run makes it, of SmolLM2-135M's shape; a step of each form in turn,
from the first, when a client has no moves of its own, to the last, when it has 29. The closing is that of the whole
round, hash apart. `--shape 3b --closing-only` takes 14 GB.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from functools import partial
from itertools import accumulate
from typing import Any, cast

import torch
from transformers import LlamaConfig, LlamaForCausalLM

from benchmarks import common
from benchmarks.common import Row
from fedmezo.federation.messages import report_size
from fedmezo.models.label_loss import LabelOnlyPath
from fedmezo.models.lane_budget import peak_memory_of
from fedmezo.models.lanes import join
from fedmezo.models.language_model import LanguageModel
from fedmezo.models.whole import WholeLM
from fedmezo.records import Batch, Report, Segment
from fedmezo.zo.arithmetic import round_coefficient, state_hash
from fedmezo.zo.local import LocalThetas, Probe
from fedmezo.zo.low_rank import LowRankNoise
from fedmezo.zo.noise import Directions, Noise, Purpose, Stream
from fedmezo.zo.replay import Move, apply_

MIB = 1 << 20
CLIENTS, STEPS = 3, 30
RATE = 1e-6
ROUNDS = 1000
"""Of a long replay."""
PART = 1 << 22
"""Elements that dense directions are applied to: they take the same time for each."""


def main() -> None:
    """Measure and print."""
    parser = common.arguments(__doc__)
    parser.set_defaults(shape="135m")
    parser.add_argument("--direction-rank", type=int, default=1, help="r of the directions")
    parser.add_argument("--closing-only", action="store_true")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    base = common.base_model(options.shape, "float32", options.device)
    no_tokenizer: Any = None  # nothing is saved
    whole = WholeLM(base, no_tokenizer, dtype=getattr(torch, options.dtype))
    noise = LowRankNoise(options.direction_rank, whole.segments)
    closing = _closing(whole, noise)
    rows = [*closing]
    if not options.closing_only:
        rows += _bytes()
        rows += _memory(whole, noise, common.batches([common.LENGTHS[-2]] * CLIENTS, base.config.vocab_size, "cpu"))
        other = common.adapted(common.base_model(options.shape, options.dtype, options.device), options.rank)
        steps = (0, 14, 29) if options.quick else range(0, STEPS, 3)
        rows += _steps({"all parameters": (whole, noise), "LoRA": (other, Noise())}, steps, base.config.vocab_size)
        rows += _adapters(other, options.direction_rank)
        rows += _long_replay(options.direction_rank, 20 if options.quick else ROUNDS, closing)
    common.report("whole", rows, options)


def _closing(model: LanguageModel, noise: Directions) -> list[Row]:
    theta, moves = model.initial(), _moves()
    device = theta.device.type
    times = [common.seconds(lambda: apply_(theta, moves, noise), device) for _ in range(3)]
    hashing = common.seconds(lambda: state_hash(theta), device)
    part = theta[:PART]
    dense = common.seconds(lambda: apply_(part, moves, Noise()), device) * len(theta) / len(part)
    return [
        Row(f"closing a round of {len(moves)} moves (aim: at most 6)", statistics.median(times), "s"),
        Row("... with Gaussian directions, from a part", dense, "s"),
        Row("elements subtracted", len(theta) * len(moves) / statistics.median(times) / 1e9, "G/s"),
        Row("state hash", hashing, "s"),
    ]


def _moves() -> list[Move]:
    """Those of a round."""
    return [
        Move(_stream(client, step), round_coefficient(RATE * (-0.9) ** step))
        for client in range(CLIENTS)
        for step in range(STEPS)
    ]


def _bytes() -> list[Row]:
    sizes = [report_size(Report(0, 0, "0" * 64, 1, 1.0, 0, scalars=(1.0,) * steps)) for steps in (STEPS, STEPS + 1)]
    return [Row("bytes up for a local step (aim: 2)", sizes[1] - sizes[0], "B")]


def _adapters(model: LanguageModel, rank: int) -> list[Row]:
    """What low-rank directions would cost where an adapter is trained."""
    theta, device = model.initial(), model.device.type
    rows = []
    for name, noise in (("Gaussian", Noise()), ("low-rank", LowRankNoise(rank, model.segments))):
        one = partial(noise.directions, [_stream(0, 0)], 0, len(theta))
        made = min(common.seconds(one, device) for _ in range(3))
        closed = min(common.seconds(partial(apply_, theta, _moves(), noise), device) for _ in range(3))
        rows.append(Row(f"LoRA, {name}: a direction", 1e3 * made, "ms"))
        rows.append(Row(f"LoRA, {name}: closing a round", 1e3 * closed, "ms"))
    return rows


def _long_replay(rank: int, rounds: int, closing: Sequence[Row]) -> list[Row]:
    """1,000 rounds, hashes included: so many of the smallest shape; of this one and 3B from a round."""
    tiny = _rounds("tiny", common.SHAPES["tiny"]["num_hidden_layers"], rank, rounds)
    here = closing[0].value + closing[-1].value
    tables, layer = (_rounds("3b", layers, rank, 1) for layers in (0, 1))
    large = tables + common.SHAPES["3b"]["num_hidden_layers"] * (layer - tables)
    return [
        Row(f"{ROUNDS:,} rounds, tiny, from {rounds:,}", tiny * ROUNDS / rounds, "s"),
        Row(f"{ROUNDS:,} rounds, this shape, from one", here * ROUNDS / 60, "min"),
        Row("a round, 3b, from its tables and a layer", large, "s"),
        Row(f"{ROUNDS:,} rounds, 3b, from that", large * ROUNDS / 3600, "h"),
    ]


def _rounds(shape: str, layers: int, rank: int, rounds: int) -> float:
    """Seconds to replay some rounds of a model with so many layers."""
    config = LlamaConfig(**common.SHAPES[shape] | {"num_hidden_layers": layers})
    with torch.device("meta"):
        shapes = [tuple(parameter.shape) for parameter in LlamaForCausalLM(config).parameters()]
    starts = accumulate(map(math.prod, shapes), initial=0)
    segments = tuple(Segment(str(i), shape, at) for i, (shape, at) in enumerate(zip(shapes, starts, strict=False)))
    theta, noise = torch.zeros(segments[-1].stop), LowRankNoise(rank, segments)

    def replay() -> None:
        for _ in range(rounds):
            apply_(theta, _moves(), noise)
            state_hash(theta)

    return common.seconds(replay, "cpu")


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
    return [
        *found,
        Row("last step / plain forward (aim: at most 1.3)", peaks["last step"] / peaks["plain forward"], "times"),
    ]


def _steps(forms: dict[str, tuple[LanguageModel, Directions]], steps: Sequence[int], vocabulary: int) -> list[Row]:
    """Some steps of a round by each form in turn; of all parameters the moves between them are made, too."""
    thetas = {}
    for name, (model, noise) in forms.items():
        model.use_lanes(2 * CLIENTS)
        thetas[name] = model.local_thetas(model.initial(), CLIENTS, noise, 2 * CLIENTS)
        _losses(thetas[name], 0, common.batches([common.LENGTHS[0]] * CLIENTS, vocabulary, "cpu"))  # to warm up
    times: dict[str, list[float]] = {name: [] for name in forms}
    made = 0
    for step in steps:
        lengths = [common.LENGTHS[(step + client) % len(common.LENGTHS)] for client in range(CLIENTS)]
        batches = common.batches(lengths, vocabulary, "cpu")
        for client in range(CLIENTS):
            between = [Move(_stream(client, at), round_coefficient(RATE)) for at in range(made, step)]
            thetas["all parameters"].move_(client, between)
        for name, own in thetas.items():
            times[name].append(common.seconds(partial(_step, own, step, batches), "cpu"))
        made = step + 1
    whole, lora = times.values()
    ratios = [a / b for a, b in zip(whole, lora, strict=True)]
    found = [Row(f"step, {name}", statistics.median(values), "s") for name, values in times.items()]
    return [
        *found,
        Row("all parameters / LoRA, median of the steps (aim: at most 1.25)", statistics.median(ratios), "times"),
        *(Row(f"... step {step + 1}", ratio, "times") for step, ratio in zip(steps, ratios, strict=True)),
    ]


def _step(thetas: LocalThetas, step: int, batches: list[Batch]) -> None:
    _losses(thetas, step, batches)
    for client in range(CLIENTS):
        thetas.move_(client, [Move(_stream(client, step), round_coefficient(RATE))])


def _losses(thetas: LocalThetas, step: int, batches: list[Batch]) -> list[float]:
    probes = [
        Probe(batch, _stream(client, step), amount)
        for client, batch in enumerate(batches)
        for amount in (round_coefficient(common.EPS), -round_coefficient(common.EPS))
    ]
    return thetas.losses([client for client in range(CLIENTS) for _ in range(2)], probes).tolist()


def _stream(client: int, step: int) -> Stream:
    return Stream(1, Purpose.DIRECTION, 0, client, step)


if __name__ == "__main__":
    main()
