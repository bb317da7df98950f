"""Seconds of a local step, beside the reference's way, back-propagation and the machine's floor.

    python -m benchmarks.step_time --threads 1 --shape tiny
    python -m benchmarks.step_time --threads 2 --shape 100m --dtype bfloat16
    python -m benchmarks.step_time --device cuda --shape 3b --rank 128 --dtype float16

A step is one client's: two losses, the directions and the update, with batches of one example. Ours is measured with
one lane and with the lanes of three clients, these also compiled, directions included (on a GPU: captured); the plain
step is always sequential, in float32 on a CPU.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import partial
from itertools import count
from typing import Any

import torch

from benchmarks import common
from benchmarks.common import Row
from fedmezo.federation.clients import ZerothOrderClients
from fedmezo.models.causal_lm import CausalLM
from fedmezo.records import Batch, ClientTask
from fedmezo.zo.estimators.protocol import Settings
from fedmezo.zo.estimators.two_point import TwoPoint
from fedmezo.zo.noise import Noise

CLIENTS = 3
LANES = 2 * CLIENTS
STEPS = 5
"""Of each client in a round: what is done once a round is spread over them. The paper's rounds have 30."""


class InTurn:
    """A client that takes its batches in turn, so many in a round: a `ClientData`."""

    num_examples = 1

    def __init__(self, batches: list[Batch], num_batches: int) -> None:
        self._batches = batches
        self.num_batches = num_batches

    def batches(self, round_index: int) -> list[Batch]:
        """The next ones."""
        first = round_index * self.num_batches
        return [self._batches[(first + i) % len(self._batches)] for i in range(self.num_batches)]


def main() -> None:
    """Measure and print."""
    options = common.arguments(__doc__).parse_args()
    torch.set_num_threads(options.threads)
    device, shape = options.device, options.shape
    lengths = common.read_lengths(options) if shape != "100m" else [(128, 128)]
    batches = common.batches(lengths, common.SHAPES[shape]["vocab_size"], device)
    plain_dtype = "float32" if device == "cpu" else options.dtype
    plain = common.adapted(common.base_model(shape, plain_dtype, device), options.rank)
    ours, compiled = (common.adapted(common.base_model(shape, options.dtype, device), options.rank) for _ in range(2))
    for model in (ours, compiled):
        model.use_lanes(LANES)
    started = time.perf_counter()
    for notice in compiled.compile(rows=1):
        print(notice)
    compiling = time.perf_counter() - started
    repeats = (1 if options.quick else 4) if shape != "tiny" else (4 if options.quick else 20)
    times = common.interleaved(rounds(plain, ours, compiled, InTurn(batches, STEPS)), repeats, device)
    step_seconds = {name: value / (CLIENTS * STEPS) for name, value in times.items()}
    measured = rows(step_seconds, options.dtype, device, lengths, ours)
    common.report("step_time", [*measured, Row("compilation", compiling, "s")], options)


def rounds(plain: CausalLM, ours: CausalLM, compiled: CausalLM, data: InTurn) -> dict[str, Callable[[], object]]:
    """A round of all clients in each form; every form sees the same batches."""
    theta = ours.flat()
    thetas = theta.repeat(LANES, 1)

    def zeroth_order(model: CausalLM, lanes: int, index: int) -> None:
        model.use_lanes(lanes)
        estimator = TwoPoint(Settings(common.EPS, noise=Noise(compiled=model.compiled)))
        work = ZerothOrderClients(model, estimator, 1, "scalars", lanes)
        tasks = [ClientTask(index, client, 1e-5) for client in range(CLIENTS)]
        for group in [tasks] if lanes > 1 else [[task] for task in tasks]:
            work.run(group, theta, "", dict.fromkeys(range(CLIENTS), data))

    def plain_steps(index: int) -> None:
        for seed, batch in enumerate(CLIENTS * data.batches(index)):
            common.plain_step(plain, batch, seed)

    def forward_passes(index: int) -> None:
        for batch in data.batches(index):
            compiled.losses(thetas, [batch] * LANES).tolist()

    def back_propagation(index: int) -> None:
        for batch in CLIENTS * data.batches(index):
            backward(plain, batch)

    forms: dict[str, Callable[[int], None]] = {
        "plain": plain_steps,
        "ours, one lane": partial(zeroth_order, ours, 1),
        "ours, lanes": partial(zeroth_order, ours, LANES),
        "ours, lanes compiled": partial(zeroth_order, compiled, LANES),
        "forward passes alone, lanes compiled": forward_passes,
        "back-propagation": back_propagation,
    }
    return {name: in_turn(form) for name, form in forms.items()}


def in_turn(form: Callable[[int], None]) -> Callable[[], None]:
    """Calls a form with 0, 1, 2, ..."""
    turns = count()
    return lambda: form(next(turns))


def backward(model: CausalLM, batch: Batch) -> None:
    """One step of the BP baseline."""
    gradients = torch.autograd.grad(model.training_loss(batch), model.parameters())
    for parameter, gradient in zip(model.parameters(), gradients, strict=True):
        parameter.data.sub_(gradient, alpha=1e-5)


def rows(
    times: dict[str, float], dtype: str, device: str, lengths: list[tuple[int, int]], model: CausalLM
) -> list[Row]:
    """Milliseconds of a step, the ratios, and the floor by arithmetic and by reading the weights."""
    made = [Row(name, 1e3 * value, "ms") for name, value in times.items()]
    base: Any = model.base
    size = sum(p.numel() for name, p in base.named_parameters() if p.requires_grad is False)
    vocabulary = 2 * base.config.vocab_size * base.config.hidden_size
    tokens = sum(map(sum, lengths)) / len(lengths)
    answer = sum(answer for _, answer in lengths) / len(lengths)
    operations = 2 * 2 * ((size - vocabulary) * tokens + vocabulary / 2 * answer)
    weights = (size - vocabulary / 2) * torch.finfo(getattr(torch, dtype)).bits / 8
    rate, speed = common.matmul_flops(dtype, device), common.bandwidth(device)
    floor = max(operations / rate, 2 * weights / speed / LANES)
    ours = min(times["ours, one lane"], times["ours, lanes"], times["ours, lanes compiled"])
    outside = 1 - times["forward passes alone, lanes compiled"] / times["ours, lanes compiled"]
    return [
        *made,
        Row("matrix products", rate / 1e9, "GFLOP/s"),
        Row("memory bandwidth", speed / 1e9, "GB/s"),
        Row("floor of a step", 1e3 * floor, "ms"),
        Row("plain / ours", times["plain"] / ours, "times"),
        Row("plain / ours, not compiled", times["plain"] / min(times["ours, one lane"], times["ours, lanes"]), "times"),
        Row("ours / floor", ours / floor, "times"),
        Row("outside forward passes", 100 * outside, "%"),
    ]


if __name__ == "__main__":
    main()
