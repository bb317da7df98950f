"""A model larger than memory: a step under a limit of the address space, and what the disk gives.

    python -m benchmarks.streamed --checkpoint DIR                            # 3B shape, bfloat16: 6.7 GB in DIR
    python -m benchmarks.streamed --checkpoint DIR --quantization int8  # and 3.1 GB in TMPDIR
    python -m benchmarks.streamed --checkpoint DIR --shape tiny --quick

Writes a checkpoint of random weights where there is none, which stays there. The limit is RLIMIT_AS: all that the
process maps counts, libraries and files too, so that it is stricter than a limit of resident memory, and needs no
rights. Before each step the system is told to forget the files, so that every byte comes from the disk.
"""

from __future__ import annotations

import json
import os
import resource
import time
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from transformers import LlamaConfig

from benchmarks import common
from benchmarks.common import Row
from benchmarks.formats import lanes_form
from benchmarks.step_time import CLIENTS, LANES
from fedmezo.models.checkpoint import stored_tensors
from fedmezo.models.fingerprint import base_hash
from fedmezo.models.streamed import load_streamed

GIB = 1 << 30
CHUNK = 1 << 22


def main() -> None:
    """Write the checkpoint if it is not there, then measure under the limit."""
    parser = common.arguments(__doc__)
    parser.set_defaults(shape="3b", dtype="bfloat16")
    parser.add_argument("--checkpoint", type=Path, required=True, metavar="DIR", help="folder of the random weights")
    parser.add_argument("--quantization", default="none", help="none, int8, int8-dynamic or nf4")
    parser.add_argument("--limit", type=float, default=4.0, metavar="GIB", help="of the address space; 0: none")
    parser.add_argument("--tokens", type=int, default=128, help="of each example, half of them answer")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    if not (options.checkpoint / "config.json").exists():
        write_checkpoint(options.checkpoint, options.shape, options.dtype)
    if options.limit:
        octets = int(options.limit * GIB)
        resource.setrlimit(resource.RLIMIT_AS, (octets, octets))
    common.report("streamed", measure(options), options)


def write_checkpoint(folder: Path, shape: str, dtype: str) -> None:
    """Random weights as transformers would write them, a file for each layer: never more than one is in memory."""
    config = LlamaConfig(**common.SHAPES[shape], max_position_embeddings=2048, dtype=dtype)
    folder.mkdir(parents=True, exist_ok=True)
    generator = torch.Generator().manual_seed(1)
    hidden, inner = config.hidden_size, config.intermediate_size
    linear = {"self_attn.q_proj": (hidden, hidden), "self_attn.k_proj": (hidden, hidden),
              "self_attn.v_proj": (hidden, hidden), "self_attn.o_proj": (hidden, hidden),
              "mlp.gate_proj": (inner, hidden), "mlp.up_proj": (inner, hidden),
              "mlp.down_proj": (hidden, inner)}  # fmt: skip
    table = (config.vocab_size, hidden)
    parts: dict[str, dict[str, tuple[int, ...]]] = {
        "vocabulary": {"model.embed_tokens": table, "lm_head": table, "model.norm": (hidden,)}
    }
    for number in range(config.num_hidden_layers):
        above = f"model.layers.{number}"
        norms = {f"{above}.{name}_layernorm": (hidden,) for name in ("input", "post_attention")}
        parts[f"layer-{number}"] = {**{f"{above}.{name}": size for name, size in linear.items()}, **norms}
    places = {}
    for file, tensors in parts.items():
        made = {f"{name}.weight": _random(size, dtype, generator) for name, size in tensors.items()}
        save_file(made, folder / f"{file}.safetensors", metadata={"format": "pt"})
        places.update(dict.fromkeys(made, f"{file}.safetensors"))
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": places}))
    config.architectures = ["LlamaForCausalLM"]
    config.save_pretrained(folder)  # last: it says that the rest is there


def _random(size: tuple[int, ...], dtype: str, generator: torch.Generator) -> torch.Tensor:
    if len(size) == 1:
        return torch.ones(size, dtype=getattr(torch, dtype))
    return torch.randn(size, generator=generator).mul_(0.02).to(getattr(torch, dtype))


def measure(options: Any) -> list[Row]:
    """Time of loading and of a step, what was read of it, and the memory that it took."""
    started = time.perf_counter()
    base = load_streamed(
        options.checkpoint,
        getattr(torch, options.dtype),
        torch.device(options.device),
        quantization=options.quantization,
    )
    base.requires_grad_(False).train(False)
    loaded = time.perf_counter()
    base_hash(base)
    hashed = time.perf_counter()
    model = common.adapted(base, options.rank)
    model.use_lanes(LANES)
    checked = time.perf_counter()
    lengths = [(options.tokens // 2, options.tokens - options.tokens // 2)] * CLIENTS
    step = lanes_form(model, common.batches(lengths, base.config.vocab_size, options.device))
    seconds, busy, octets = [], [], []
    for _ in range(1 if options.quick else 3):
        forget(options.checkpoint)
        before, began, used = read_from_disk(), time.perf_counter(), time.process_time()
        step()
        seconds.append(time.perf_counter() - began)
        busy.append(time.process_time() - used)
        octets.append(read_from_disk() - before)
    best = min(range(len(seconds)), key=seconds.__getitem__)
    layers = sum(p.numel() for p in base.parameters())
    return [
        Row("parameters", layers, ""),
        Row("load", loaded - started, "s"),
        Row("fingerprint", hashed - loaded, "s"),
        Row("adapter and checks", checked - hashed, "s"),
        Row(f"step of {CLIENTS} clients, {LANES} lanes of {options.tokens} tokens", seconds[best], "s"),
        Row("processor time of it, all threads", busy[best], "s"),
        Row("read from the disk in it", octets[best] / 1e9, "GB"),
        Row("rate of that", octets[best] / seconds[best] / 1e9, "GB/s"),
        Row("rate of the disk alone", disk_rate(options.checkpoint) / 1e9, "GB/s"),
        Row("largest address space", status("VmPeak") / GIB, "GiB"),
        Row("largest resident memory", status("VmHWM") / GIB, "GiB"),
    ]


def forget(folder: Path) -> None:
    """Tell the system to keep nothing of a checkpoint in memory."""
    for path in folder.glob("*.safetensors"):
        with path.open("rb") as file:
            os.fsync(file.fileno())
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def disk_rate(folder: Path) -> float:
    """Bytes a second of reading the checkpoint in order and doing nothing else."""
    forget(folder)
    files = {place.file.name for place in stored_tensors(folder).values()}
    started, octets, room = time.perf_counter(), 0, bytearray(CHUNK)
    for name in sorted(map(str, files)):
        with open(name, "rb", buffering=0) as file:
            while count := file.readinto(room):
                octets += count
    return octets / (time.perf_counter() - started)


def read_from_disk() -> int:
    """Bytes that this process has had the disk read."""
    entries = dict(line.split(": ") for line in Path("/proc/self/io").read_text().splitlines())
    return int(entries["read_bytes"])


def status(name: str) -> int:
    """A value of this process's memory, in bytes."""
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(name))
    return 1024 * int(line.split()[1])


if __name__ == "__main__":
    main()
