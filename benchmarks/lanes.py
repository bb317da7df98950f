"""Time of a lane for each number of lanes and each number format, and what lanes of one batch have in common.

    python -m benchmarks.lanes --shape 100m --formats bfloat16,bfloat16+int8-dynamic

A lane is one theta with its batch; all numbers of lanes and all formats are interleaved in one process. Until the first
adapted layer answers, lanes of one batch compute the same: with LoRA on q and v that is embedding, first norm and first
key projection. Their share of a pass is measured too; computed once for a pair of lanes, half of it would be saved.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks import common
from benchmarks.common import Row
from fedmezo.models.causal_lm import CausalLM

LANES = (1, 2, 4, 6, 8, 12)


def main() -> None:
    """Measure and print."""
    parser = common.arguments(__doc__)
    parser.add_argument("--formats", default="float32,bfloat16,bfloat16+int8-dynamic", help="with commas between")
    parser.add_argument("--tokens", type=int, default=150, help="of each example, half of them answer")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    vocabulary = common.SHAPES[options.shape]["vocab_size"]
    lengths = [(options.tokens // 2, options.tokens - options.tokens // 2)] * max(LANES)
    batches = common.batches(lengths, vocabulary, options.device)
    forms: dict[str, Callable[[], object]] = {}
    models = {}
    for name in options.formats.split(","):
        dtype, _, scheme = name.partition("+")
        base = common.base_model(options.shape, dtype, options.device, scheme or "none")
        model = models[name] = common.adapted(base, options.rank)
        theta = model.flat()
        for lanes in LANES:
            thetas = theta.expand(lanes, -1).contiguous()
            forms[f"{name}, {lanes} lanes"] = partial(pass_over, model, thetas, batches[:lanes])
    times = common.interleaved(forms, 1 if options.quick else 3, options.device)
    rows = [Row(form, 1e3 * value / int(form.split(", ")[1].split()[0]), "ms a lane") for form, value in times.items()]
    for name, model in models.items():
        rows.append(Row(f"{name}, share before the first adapted layer", 100 * share_in_common(model, batches[0]), "%"))
    common.report("lanes", rows, options)


def pass_over(model: CausalLM, thetas: Tensor, batches: Any) -> None:
    """The losses of so many lanes in one pass."""
    model.use_lanes(len(thetas))
    model.losses(thetas, batches).tolist()


def share_in_common(model: CausalLM, batch: Any) -> float:
    """Of a pass over one batch, what embedding, first norm and first key projection take."""
    base: Any = model.base
    first = base.model.layers[0]
    clock = Clock()
    for module in (base.model.embed_tokens, first.input_layernorm, first.self_attn.k_proj):
        clock.watch(module)
    model.use_lanes(1)  # through the model itself, whose modules are those that are watched
    theta = model.flat()[None]
    whole = []
    for _ in range(5):
        started = time.process_time()
        model.losses(theta, [batch]).tolist()
        whole.append(time.process_time() - started)
    return clock.spent / sum(whole)


class Clock:
    """Adds up the time that some modules take."""

    def __init__(self) -> None:
        self.spent = 0.0
        self._started = 0.0

    def watch(self, module: nn.Module) -> None:
        """From now on, this one too."""
        module.register_forward_pre_hook(self._start)
        module.register_forward_hook(self._stop)

    def _start(self, *_: object) -> None:
        self._started = time.process_time()

    def _stop(self, *_: object) -> None:
        self.spent += time.process_time() - self._started


if __name__ == "__main__":
    main()
