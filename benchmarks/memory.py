"""Memory above the base weights: python -m benchmarks.memory --shape 100m.

Beside a plain forward pass, the reference's and MeZO's own loops, and back-propagation. Counts what operations
allocate, as the run itself does to choose its lanes; on a GPU, the allocator's own peak.

    python -m benchmarks.memory --shape 100m --bases        # what the base takes in each number format, in all shapes
    python -m benchmarks.memory --device cuda --shape 3b --rank 128 --dtype float16
    python -m benchmarks.memory --shape 3b --rank 128 --dtype bfloat16 --threads 2 --one-lane-only   # 8 GB
"""

from __future__ import annotations

import argparse
from collections.abc import Callable

import torch
from torch import Tensor
from transformers import LlamaForCausalLM

from benchmarks import common
from benchmarks.common import Row
from benchmarks.step_time import InTurn, backward
from fedmezo.federation.clients import ZerothOrderClients
from fedmezo.models.lane_budget import longest_batch, peak_memory_of
from fedmezo.models.quantised import NONE, SCHEMES
from fedmezo.records import ClientTask
from fedmezo.zo.estimators.protocol import Settings
from fedmezo.zo.estimators.two_point import TwoPoint

MIB = 1 << 20
LONGEST = 1000
CLIENTS = 3


def main() -> None:
    """Measure and print."""
    parser = common.arguments(__doc__)
    parser.add_argument("--one-lane-only", action="store_true", help="neither six lanes nor back-propagation")
    parser.add_argument("--bases", action="store_true", help="only what the base itself takes in each number format")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    common.report("memory", bases() if options.bases else steps(options), options)


def bases() -> list[Row]:
    """Size of each shape in bfloat16 and quantised, as a share of its size in float32: from one of its equal layers."""
    rows = []
    for shape, sizes in common.SHAPES.items():
        whole = 0
        for scheme in SCHEMES:
            base = common.base_model(shape, "bfloat16", "cpu", scheme, layers=1)
            alone, layer = (sum(map(_size, some)) for some in _parts(base))
            total = alone + sizes["num_hidden_layers"] * layer
            whole = whole or 2 * total  # the first is not quantised, and float32 takes twice as much
            rows.append(Row(f"{shape}, bfloat16{'' if scheme == NONE else f' with {scheme}'}", total / whole, "times"))
    return rows


def _parts(base: LlamaForCausalLM) -> tuple[list[Tensor], list[Tensor]]:
    """The tensors outside the layers, and those of a base of one layer in it."""
    inside = [*base.model.layers.parameters(), *base.model.layers.buffers()]
    known = {id(tensor) for tensor in inside}
    return [t for t in (*base.parameters(), *base.buffers()) if id(t) not in known], inside


def _size(tensor: Tensor) -> int:
    return tensor.nbytes


def steps(options: argparse.Namespace) -> list[Row]:
    """What a step of each kind allocates at most."""
    device = torch.device(options.device)
    model = common.adapted(common.base_model(options.shape, options.dtype, options.device), options.rank)
    length = 256 if options.quick else LONGEST
    longest = longest_batch(1, length, device)
    theta = model.flat().cpu()  # a server keeps its own on the host

    def plain() -> object:
        with torch.inference_mode():
            labels = longest.labels.to(device)
            return model.network(input_ids=longest.input_ids, attention_mask=longest.attention_mask, labels=labels)

    def step(lanes: int) -> None:
        model.use_lanes(lanes)
        tasks = [ClientTask(0, client, 1e-5) for client in range(max(1, lanes // 2))]
        work = ZerothOrderClients(model, TwoPoint(Settings(common.EPS)), 1, "scalars", lanes)
        work.run(tasks, theta, "", {task.client: InTurn([longest], 1) for task in tasks})

    def back() -> None:
        model.load(theta)
        backward(model, longest)

    forms: dict[str, Callable[[], object]] = {
        "plain inference forward": plain,
        "the reference's own step": lambda: common.plain_step(model, longest, 1),
        "MeZO's own step": lambda: common.mezo_step(model, longest, 1),
        "a step, one lane": lambda: step(1),
    }
    if not options.one_lane_only:
        model.use_lanes(2 * CLIENTS)  # its check is no part of a step
        forms |= {f"a step, {2 * CLIENTS} lanes": lambda: step(2 * CLIENTS), "back-propagation": back}
    peaks = {name: peak_memory_of(work, device) for name, work in forms.items()}
    if not options.one_lane_only:
        model.checkpoint_gradients()
        peaks["back-propagation, checkpointed"] = peak_memory_of(back, device)
    weights = sum(p.numel() * p.element_size() for p in model.network.parameters())
    rows = [Row(f"{name}, above the weights", peak / MIB, "MiB") for name, peak in peaks.items()]
    whole = {name: peak + weights for name, peak in peaks.items()}
    rows.append(Row("weights and theta", weights / MIB, "MiB"))
    rows.append(Row("one lane / plain forward", whole["a step, one lane"] / whole["plain inference forward"], "times"))
    return rows


if __name__ == "__main__":
    main()
