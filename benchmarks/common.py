"""What the benchmarks share: models of a known shape, batches of realistic lengths, the plain step, and the report.

Everything is timed interleaved, in one process and one run: a round of every form, then the next round, so that a
machine that is busy with other things slows all of them alike. Ratios are of medians.
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedModel

from fedmezo.models.causal_lm import CausalLM
from fedmezo.models.quantised import int8_product, quantise_
from fedmezo.records import IGNORE_LABEL, Batch

SHAPES: dict[str, dict[str, Any]] = {
    "tiny": {"vocab_size": 1024, "hidden_size": 128, "intermediate_size": 344, "num_hidden_layers": 4,
             "num_attention_heads": 4},
    "100m": {"vocab_size": 32000, "hidden_size": 768, "intermediate_size": 2048, "num_hidden_layers": 8,
             "num_attention_heads": 12},
    "135m": {"vocab_size": 49152, "hidden_size": 576, "intermediate_size": 1536, "num_hidden_layers": 30,
             "num_attention_heads": 9, "num_key_value_heads": 3, "tie_word_embeddings": True},
    "3b": {"vocab_size": 32000, "hidden_size": 3200, "intermediate_size": 8640, "num_hidden_layers": 26,
           "num_attention_heads": 32},
}  # fmt: skip
"""The bundled base, a LLaMA of some 100M parameters, SmolLM2-135M, and open_llama_3b; all with random weights."""

LENGTHS = ((64, 31), (72, 40), (77, 48), (81, 55), (86, 62), (92, 71), (98, 80), (105, 92), (116, 110), (138, 143))
"""(prompt, answer) tokens at the 5th, 15th, ... 95th percentile of GSM8K's 7,473 training examples: characters, with
the prompt's template, over 4; longer questions have longer answers (correlation 0.5), so they are paired by rank."""

EPS = 1e-3


@dataclass(frozen=True, slots=True)
class Row:
    """One measured value."""

    name: str
    value: float
    unit: str


def arguments(description: str | None) -> argparse.ArgumentParser:
    """The options that all benchmarks have."""
    parser = argparse.ArgumentParser(description=(description or "").split("\n")[0])
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write the rows to this file")
    parser.add_argument("--quick", action="store_true", help="few repetitions: half a minute, and less sure")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--device", default="cpu", help="cpu or cuda")
    parser.add_argument("--dtype", default="float32", choices=["float32", "bfloat16", "float16"])
    parser.add_argument("--shape", default="tiny", choices=SHAPES)
    parser.add_argument("--rank", type=int, default=8, help="LoRA's r")
    parser.add_argument("--data", type=Path, metavar="FILE", help="JSON list of [prompt, answer] lengths in tokens")
    return parser


def base_model(
    shape: str, dtype: str, device: str, quantization: str = "none", layers: int | None = None
) -> LlamaForCausalLM:
    """A frozen LLaMA with random weights, quantised or not, with all its layers or as many as are given."""
    sizes = SHAPES[shape] if layers is None else SHAPES[shape] | {"num_hidden_layers": layers}
    config = LlamaConfig(**sizes, max_position_embeddings=2048, use_cache=False)
    with torch.random.fork_rng(), torch.device(device):
        torch.manual_seed(1)
        untyped: Any = LlamaForCausalLM
        model: LlamaForCausalLM = untyped._from_config(config, dtype=getattr(torch, dtype)).requires_grad_(False)
    model.train(False)
    quantise_(model, quantization)
    return model


def adapted(base: PreTrainedModel, rank: int) -> CausalLM:
    """The model with LoRA on the query and value projections, as in the paper."""
    args = {"adapter_method": "lora", "r": rank, "lora_alpha": 2 * rank, "target_modules": ["q_proj", "v_proj"]}
    return CausalLM(base, args, 1)


def batches(lengths: Sequence[tuple[int, int]], vocabulary: int, device: str) -> list[Batch]:
    """A batch of one row for each (prompt, answer)."""
    generator = torch.Generator().manual_seed(2)
    made = []
    for prompt, answer in lengths:
        ids = torch.randint(3, vocabulary, (1, prompt + answer), generator=generator)
        labels = ids.clone()
        labels[:, :prompt] = IGNORE_LABEL
        made.append(Batch(ids.to(device), torch.ones_like(ids).to(device), labels))
    return made


def read_lengths(options: argparse.Namespace) -> list[tuple[int, int]]:
    """The lengths of `--data`, or those of GSM8K."""
    if options.data is None:
        return list(LENGTHS)
    return [(int(prompt), int(answer)) for prompt, answer in json.loads(options.data.read_text())]


def plain_step(model: CausalLM, batch: Batch, seed: int) -> None:
    """A step as the reference does it: PEFT's own forward with labels, each tensor perturbed by `torch.normal`."""
    parameters = model.parameters()
    device = batch.input_ids.device
    labels = batch.labels.to(device)

    def perturb_(amount: float) -> None:
        generator = torch.Generator(device).manual_seed(seed)
        for parameter in parameters:
            z = torch.normal(0.0, 1.0, parameter.shape, generator=generator, device=device)
            parameter.data.add_(z, alpha=amount)

    def loss() -> float:
        with torch.inference_mode():
            out = model.network(input_ids=batch.input_ids, attention_mask=batch.attention_mask, labels=labels)
            return float(out.loss)

    _two_points(perturb_, loss)


def mezo_step(model: CausalLM, batch: Batch, seed: int) -> None:
    """A step as MeZO's own trainer writes it: new tensors at each perturbation, and torch's generator seeded again."""
    labels = batch.labels.to(batch.input_ids.device)

    def perturb_(amount: float) -> None:
        torch.manual_seed(seed)
        for parameter in model.parameters():
            z = torch.normal(
                mean=0, std=1, size=parameter.data.size(), device=parameter.data.device, dtype=parameter.data.dtype
            )
            parameter.data = parameter.data + z * amount

    def loss() -> float:
        model.network.train(False)
        with torch.inference_mode():
            out = model.network(input_ids=batch.input_ids, attention_mask=batch.attention_mask, labels=labels)
            return float(out.loss)

    with torch.random.fork_rng():
        _two_points(perturb_, loss)


def _two_points(perturb_: Callable[[float], None], loss: Callable[[], float]) -> None:
    perturb_(EPS)
    plus = loss()
    perturb_(-2 * EPS)
    minus = loss()
    perturb_(EPS)
    perturb_(-1e-5 * (plus - minus) / (2 * EPS))


def seconds(work: Callable[[], object], device: str) -> float:
    """How long a piece of work takes, the device's part included.

    With one thread on a CPU, by the processor's time: what else the machine does is then left out.
    """
    clock = time.process_time if device == "cpu" and torch.get_num_threads() == 1 else time.perf_counter
    wait(device)
    started = clock()
    work()
    wait(device)
    return clock() - started


def wait(device: str) -> None:
    """Until the device has done all that it was given."""
    if device == "cuda":
        torch.cuda.synchronize()


def interleaved(forms: Mapping[str, Callable[[], object]], repeats: int, device: str) -> dict[str, float]:
    """Median seconds of each form, after one call of each to warm up."""
    for work in forms.values():
        work()
    times: dict[str, list[float]] = {name: [] for name in forms}
    for _ in range(repeats):
        for name, work in forms.items():
            times[name].append(seconds(work, device))
    return {name: statistics.median(values) for name, values in times.items()}


def matmul_flops(dtype: str, device: str, size: int = 1024) -> float:
    """Best rate of a matrix product of this precision, in operations a second."""
    a, b = (torch.randn(size, size, device=device).to(getattr(torch, dtype)) for _ in range(2))
    with torch.inference_mode():
        best = min(seconds(lambda: torch.mm(a, b), device) for _ in range(20))
    return 2 * size**3 / best


def int8_operations(device: str, size: int = 1024) -> float:
    """Best rate of a product of int8 matrices with int32 sums, in operations a second."""
    a, b = (torch.randint(-127, 128, (size, size), device=device, dtype=torch.int8) for _ in range(2))
    best = min(seconds(lambda: int8_product(a, b), device) for _ in range(20))
    return 2 * size**3 / best


def bandwidth(device: str) -> float:
    """Best rate of a copy of 64 MiB on the CPU or 1 GiB on a GPU, in bytes read and written a second."""
    source = torch.ones((1 << 30 if device == "cuda" else 1 << 26) // 4, device=device)
    target: Tensor = torch.empty_like(source)
    best = min(seconds(lambda: target.copy_(source), device) for _ in range(10))
    return 2 * 4 * source.numel() / best


def report(name: str, rows: Sequence[Row], options: argparse.Namespace) -> None:
    """Print the rows and, with `--json`, write them beside what they were measured on."""
    width = max(len(row.name) for row in rows)
    print(f"{name}: {' '.join(f'{key}={value}' for key, value in vars(options).items() if value is not None)}")
    for row in rows:
        print(f"  {row.name:<{width}}  {row.value:12.4g} {row.unit}")
    if options.json is not None:
        document = {"benchmark": name, **circumstances(options), "rows": [[r.name, r.value, r.unit] for r in rows]}
        options.json.write_text(json.dumps(document, indent=1) + "\n")


def circumstances(options: argparse.Namespace) -> dict[str, object]:
    """Commit, versions, machine and options."""
    commit = subprocess.run(["git", "rev-parse", "HEAD"], capture_output=True, text=True, check=False).stdout.strip()
    processor = next(
        (line.partition(":")[2].strip() for line in _cpuinfo() if line.startswith("model name")), platform.machine()
    )
    return {
        "commit": commit,
        "versions": {name: version(name) for name in ("torch", "transformers", "peft", "fedmezo")},
        "machine": torch.cuda.get_device_name() if options.device == "cuda" else processor,
        "options": {key: str(value) for key, value in vars(options).items()},
    }


def _cpuinfo() -> list[str]:
    path = Path("/proc/cpuinfo")
    return path.read_text().splitlines() if path.exists() else []
