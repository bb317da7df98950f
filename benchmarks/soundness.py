"""Which number format leaves a signal on a real model: correlation of g with float32's, and time for each lane.

    python -m benchmarks.soundness --model SmolLM2-135M-Instruct.Q4_1.gguf --examples gsm8k_train.jsonl
    python -m benchmarks.soundness --model bundled --examples gsm8k_train.jsonl --formats bfloat16,bfloat16+int8-dynamic

Examples are lines of JSON with `question` and `answer`, LoRA on q and v. A format is dtype, dtype+scheme, or
dtype+lift, a lift being a way of making int8 products finer: `columns16` keeps the 16 columns of the activations apart
that are largest on the examples, `digits2` has two int8 digits for each activation. (LLM.int8 chooses columns anew in
each product, over all its tokens: then the loss of a token depends on later ones.) The time is that of the losses
themselves, called, all formats in one process.
"""

from __future__ import annotations

import json
import re
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from benchmarks import common
from benchmarks.common import Row
from fedmezo.models.loading import load_base
from fedmezo.models.quantised import INT8_DYNAMIC, SCHEMES, Int8Linear, int8_product, rounded
from fedmezo.records import IGNORE_LABEL, Batch
from fedmezo.zo.noise import Noise, Purpose, Stream

FORMATS = (
    "bfloat16,bfloat16+int8-dynamic,float32+int8-dynamic,bfloat16+columns16,bfloat16+columns64,float32+columns64,"
    "float32+digits2"
)
LANES = 6


def main() -> None:
    """Measure and print."""
    parser = common.arguments(__doc__)
    parser.add_argument("--model", default="bundled", help="a folder, a hub name or a GGUF file")
    parser.add_argument("--examples", type=Path, required=True, metavar="FILE")
    parser.add_argument("--formats", default=FORMATS, help="with commas between")
    parser.add_argument("--eps", default="5e-3,2e-2", help="with commas between")
    parser.add_argument("--directions", type=int, default=24)
    parser.add_argument(
        "--tokens", type=int, default=160, help="at which examples are cut, half of them of the question"
    )
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    rows: list[Row] = []
    expected, seconds = measure(options, "float32")
    rows.append(Row("float32, a lane", 1e3 * seconds, "ms"))
    for name in options.formats.split(","):
        found, seconds = measure(options, name)
        rows += [Row(f"{name}, eps {eps:g}", _correlation(found[eps], expected[eps]), "") for eps in expected]
        rows.append(Row(f"{name}, a lane", 1e3 * seconds, "ms"))
        print(*(f"{row.name} {row.value:.3g}" for row in rows[-1 - len(expected) :]), sep="; ", flush=True)
    common.report("soundness", rows, options)


def measure(options: Any, name: str) -> tuple[dict[float, Tensor], float]:
    """g along each direction at each eps, and processor seconds of a loss."""
    dtype, _, scheme = name.partition("+")
    lift = None if scheme in (*SCHEMES, "") else make_lift(scheme)
    scheme = INT8_DYNAMIC if lift else scheme or "none"
    base, tokenizer = load_base(
        options.model, None, getattr(torch, dtype), torch.device(options.device), quantization=scheme
    )
    batches = examples(options, tokenizer)
    if lift is not None:
        lifted = [(parent, child, Lifted(layer, lift)) for parent, child, layer in _int8_layers(base)]
        for parent, child, layer in lifted:
            setattr(parent, child, layer)
        with torch.inference_mode():
            for batch in batches:
                base(input_ids=batch.input_ids)
        for _, _, layer in lifted:
            layer.is_looking = False
    model = common.adapted(base, options.rank)
    model.use_lanes(LANES)
    theta, found, spent = model.flat(), {}, []
    streams = [Stream(1, Purpose.DIRECTION, step=direction) for direction in range(options.directions)]
    directions = Noise().directions(streams, 0, len(theta), theta.device).float()
    for eps in map(float, options.eps.split(",")):
        losses, probes = [], []
        for number, z in enumerate(directions):
            probes += [(theta + sign * eps * z, batches[number % len(batches)]) for sign in (1, -1)]
        for first in range(0, len(probes), LANES):
            thetas, some = zip(*probes[first : first + LANES], strict=True)
            started = time.process_time()
            losses.append(model.losses(torch.stack(thetas), some).cpu())
            spent.append((time.process_time() - started) / len(some))
        plus, minus = torch.cat(losses).view(-1, 2).double().unbind(1)
        found[eps] = (plus - minus) / (2 * eps)
    return found, sorted(spent)[len(spent) // 2]


def examples(options: Any, tokenizer: Any) -> list[Batch]:
    """Four of them, one in each batch, from all over the file."""
    lines = options.examples.read_text(encoding="utf-8").splitlines()
    batches = []
    for line in lines[:: len(lines) // 4][:4]:
        example = json.loads(line)
        prompt, answer = (tokenizer(example[key], add_special_tokens=False).input_ids for key in ("question", "answer"))
        prompt = prompt[-options.tokens // 2 :]
        ids = torch.tensor([(prompt + answer)[: options.tokens]])
        labels = ids.masked_fill(torch.arange(ids.shape[1]) < len(prompt), IGNORE_LABEL)
        batches.append(Batch(ids.to(options.device), torch.ones_like(ids).to(options.device), labels))
    return batches


Lift = Callable[[Tensor, Int8Linear, Tensor], Tensor]
"""From activations (n, in), a layer with int8 weights and the largest size of each input (in,), as far as was looked,
to the layer's products without the weights' scales, (n, out) float32."""


class Lifted(nn.Linear):
    """A layer with int8 weights whose activations become int8 in a finer way."""

    def __init__(self, layer: Int8Linear, lift: Lift) -> None:
        nn.Module.__init__(self)
        self.out_features, self.in_features = layer.out_features, layer.in_features
        self.weight, self.bias = layer.weight, layer.bias
        self.layer = layer
        self.lift = lift
        self.largest = torch.zeros(layer.in_features)
        self.is_looking = True

    def forward(self, x: Tensor) -> Tensor:
        """Map (..., in) to (..., out)."""
        rows = x.flatten(0, -2)
        if self.is_looking:
            self.largest = torch.maximum(self.largest, rows.abs().amax(0).float())
        y = (self.lift(rows, self.layer, self.largest) * self.layer.scales).to(x.dtype)
        return (y if self.bias is None else y + self.bias).view(*x.shape[:-1], self.out_features)


def make_lift(name: str) -> Lift:
    """`columnsN` or `digits2`."""
    kind, number = re.fullmatch(r"([a-z]+)(\d+)", name).groups()  # type: ignore[union-attr]  # else an error, rightly
    return {"columns": columns_apart, "digits": two_digits}[kind](int(number))


def columns_apart(number: int) -> Lift:
    """The inputs that are largest are multiplied in the activations' own precision."""

    def lift(x: Tensor, layer: Int8Linear, largest: Tensor) -> Tensor:
        columns = largest.topk(number).indices
        apart = F.linear(x[:, columns], layer.weight[:, columns].to(x.dtype))
        whole, scales = rounded(x.index_fill(1, columns, 0))
        return int8_product(whole, layer.weight) * scales + apart

    return lift


def two_digits(_number: int) -> Lift:
    """A first int8 number, and a second for what the first leaves, 254 times as fine: two products."""

    def lift(x: Tensor, layer: Int8Linear, _largest: Tensor) -> Tensor:
        whole, scales = rounded(x)
        rest = (x / scales - whole).mul_(254).round_().clamp_(-127, 127).to(torch.int8)
        return (int8_product(whole, layer.weight) + int8_product(rest, layer.weight) / 254) * scales

    return lift


def _int8_layers(base: nn.Module) -> Iterator[tuple[nn.Module, str, Int8Linear]]:
    for parent in base.modules():
        for name, child in parent.named_children():
            if isinstance(child, Int8Linear):
                yield parent, name, child


def _correlation(a: Tensor, b: Tensor) -> float:
    return float(torch.corrcoef(torch.stack([a, b]))[0, 1])


if __name__ == "__main__":
    main()
