"""Seconds of a step in each number format, beside the reference's and MeZO's own loops, back-propagation and the floor.

    python -m benchmarks.formats --shape 100m
    python -m benchmarks.formats --shape 100m --formats bfloat16,bfloat16+int8-dynamic   # two, so both are compiled
    python -m benchmarks.formats --model SmolLM2-135M-Instruct.Q4_1.gguf    # a real LLaMA, and GSM8K's lengths

All in one process, interleaved. A step is two losses, its direction and the update, of one client with batches of one
example. All forms take the steps of three clients on the same batches; ours has their lanes, called and compiled (on a
GPU: captured). Loops and back-propagation are in float32 on a CPU and in `--dtype` on a GPU. The floor of a format is
what its matrix products take at the measured rate of their kind: those of the layers, and that of the head for the
label tokens.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from itertools import count
from typing import Any

import torch
from torch import Tensor
from transformers import LlamaForCausalLM

from benchmarks import common
from benchmarks.common import Row
from benchmarks.step_time import CLIENTS, LANES, InTurn, in_turn
from fedmezo.federation.clients import ZerothOrderClients
from fedmezo.models.causal_lm import CausalLM
from fedmezo.models.loading import load_base
from fedmezo.models.quantised import rounds_activations
from fedmezo.records import Batch, ClientTask
from fedmezo.zo.estimators.protocol import Settings
from fedmezo.zo.estimators.two_point import TwoPoint

FORMATS = ("float32", "bfloat16", "bfloat16+int8", "bfloat16+int8-dynamic", "bfloat16+nf4")


def main() -> None:
    """Measure and print."""
    parser = common.arguments(__doc__)
    parser.add_argument("--model", help="a model of LLaMA's kind in place of a shape with random weights")
    parser.add_argument("--called", action="store_true", help="nothing compiled, which takes minutes for many layers")
    parser.add_argument("--formats", default=",".join(FORMATS), help="dtype or dtype+scheme, with commas between")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    lengths = [(128, 128)] if options.shape == "100m" and not options.model else common.read_lengths(options)
    loops = "float32" if options.device == "cpu" else options.dtype
    repeats = 2 if options.quick else 5
    common.report("formats", measure(options, options.formats.split(","), lengths, loops, repeats), options)


def measure(
    options: Any, formats: Sequence[str], lengths: Sequence[tuple[int, int]], loops: str, repeats: int
) -> list[Row]:
    """The rows of all forms: milliseconds of a step, bytes of the base, ratios to the loops, and to the floor.

    Args:
        options: shape, rank and device.
        formats: `dtype` or `dtype+scheme`.
        lengths: (prompt, answer) of each batch, in tokens.
        loops: dtype of the loops that ours is compared with.
        repeats: of each form.
    """
    device = options.device
    plain = common.adapted(_base(options, loops), options.rank)
    batches = common.batches(lengths, plain.base.config.vocab_size, device)
    whole = _bytes(plain)
    forms = loop_forms(plain, batches)
    names, sizes = {}, {}
    for name in formats:
        dtype, _, scheme = name.partition("+")
        for is_compiled in (False,) if getattr(options, "called", False) else (False, True):
            model = common.adapted(_base(options, dtype, scheme or "none"), options.rank)
            model.use_lanes(LANES)
            if is_compiled and model.compile(rows=1):
                continue
            form = f"ours, {name}{', compiled' if is_compiled else ''}"
            names[form], sizes[name] = name, _bytes(model)
            forms[form] = lanes_form(model, batches)
    times = common.interleaved(forms, repeats, device)
    milliseconds = {form: 1e3 * value / CLIENTS for form, value in times.items()}
    made = [Row(form, value, "ms") for form, value in milliseconds.items()]
    for name in formats:
        best = min(value for form, value in milliseconds.items() if names.get(form) == name)
        made += [Row(f"{loop} / {name}", milliseconds[loop] / best, "times") for loop in ("reference", "MeZO", "BP")]
        made.append(Row(f"{name} / its floor", best / (1e3 * floor(name, plain, lengths, device)), "times"))
        made.append(Row(f"base in {name} / in {loops}", sizes[name] / whole, "times"))
    return made


def _base(options: Any, dtype: str, scheme: str = "none") -> LlamaForCausalLM:
    """The named model, or a random one of the shape."""
    if not getattr(options, "model", None):
        return common.base_model(options.shape, dtype, options.device, scheme)
    base, _ = load_base(options.model, None, getattr(torch, dtype), torch.device(options.device), quantization=scheme)
    assert isinstance(base, LlamaForCausalLM), "the floor counts a LLaMA's products"
    return base


def loop_forms(model: CausalLM, batches: Sequence[Batch]) -> dict[str, Callable[[], object]]:
    """A step of each client, on the batches that `lanes_form` has, by each of the loops that ours is compared with."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-5)

    def back_propagation(turn: int) -> None:
        loss = model.training_loss(batches[turn % len(batches)])
        for parameter, gradient in zip(model.parameters(), torch.autograd.grad(loss, model.parameters()), strict=True):
            parameter.grad = gradient
        optimizer.step()

    def reference(turn: int) -> None:
        common.plain_step(model, batches[turn % len(batches)], turn)

    def mezo(turn: int) -> None:
        common.mezo_step(model, batches[turn % len(batches)], turn)

    def of_all_clients(step: Callable[[int], None]) -> Callable[[], object]:
        one = in_turn(step)
        return lambda: [one() for _ in range(CLIENTS)]

    steps = {"reference": reference, "MeZO": mezo, "BP": back_propagation}
    return {name: of_all_clients(step) for name, step in steps.items()}


def lanes_form(model: CausalLM, batches: Sequence[Batch]) -> Callable[[], object]:
    """One step of three clients at once."""
    theta = model.flat()
    data = InTurn(list(batches), 1)
    work = ZerothOrderClients(model, TwoPoint(Settings(common.EPS)), 1, "scalars", LANES)
    turns = count()

    def step(theta: Tensor) -> None:
        tasks = [ClientTask(next(turns), client, 1e-5) for client in range(CLIENTS)]
        work.run(tasks, theta, "", dict.fromkeys(range(CLIENTS), data))

    return partial(step, theta)


def floor(name: str, model: CausalLM, lengths: Sequence[tuple[int, int]], device: str) -> float:
    """Seconds that the matrix products of a step take at the measured rates."""
    dtype, _, scheme = name.partition("+")
    base: Any = model.base
    vocabulary: int = base.config.vocab_size * base.config.hidden_size
    layers: int = sum(p.numel() for p in base.model.layers.parameters() if not p.requires_grad)
    tokens = sum(map(sum, lengths)) / len(lengths)
    answer = sum(answer for _, answer in lengths) / len(lengths)
    rate = common.matmul_flops(dtype, device)
    fast = common.int8_operations(device) if rounds_activations(scheme) else rate
    return 4 * (layers * tokens / fast + vocabulary * answer / rate)


def _bytes(model: CausalLM) -> int:
    return sum(
        tensor.nbytes for tensor in (*model.base.parameters(), *model.base.buffers()) if not tensor.requires_grad
    )


if __name__ == "__main__":
    main()
