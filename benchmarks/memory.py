"""Memory above the base weights: python -m benchmarks.memory --shape 100m. Beside a plain forward and back-propagation.

Counts what operations allocate, as the run itself does to choose its lanes; on a GPU, the allocator's own peak.

    python -m benchmarks.memory --device cuda --shape 3b --rank 128 --dtype float16
    python -m benchmarks.memory --shape 3b --rank 128 --dtype bfloat16 --threads 2 --one-lane-only   # 8 GB
"""

from __future__ import annotations

from collections.abc import Callable

import torch

from benchmarks import common
from benchmarks.common import Row
from benchmarks.step_time import InTurn, backward
from fedmezo.federation.clients import ZerothOrderClients
from fedmezo.models.lane_budget import longest_batch, peak_memory_of
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
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
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

    forms: dict[str, Callable[[], object]] = {"plain inference forward": plain, "a step, one lane": lambda: step(1)}
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
    common.report("memory", rows, options)


if __name__ == "__main__":
    main()
