"""A run's division of its data as files: what each client would bring to a run on several machines."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path

from rich.console import Console

from fedmezo.atomic import replacing
from fedmezo.config import Config
from fedmezo.data.rows import row_of
from fedmezo.records import Example
from fedmezo.runs import assemble
from fedmezo.runs.assemble import Holdings


def write_shards(config: Config, folder: Path) -> dict[Path, int]:
    """Divide a configuration's data as a run would, and write the parts; returns the examples in each file.

    Raises:
        FedMeZOError: the model's tokenizer or the data cannot be had, or not be divided as asked.
    """
    tuned = assemble.load_model(config)
    return write_holdings(assemble.load_holdings(config, tuned.tokenizer, Console()), folder)


def write_holdings(holdings: Holdings, folder: Path) -> dict[Path, int]:
    """Write `client_0.jsonl`, ... with the clients' training examples, and `val.jsonl` and `test.jsonl` of all of them.

    The order is that of the data set, so that a site draws from its file the batches the simulation would draw.
    """
    divided = holdings.partition
    parts = {f"client_{client}": indices for client, indices in enumerate(divided.train)}
    written = {}
    for name, indices in parts.items():
        written[folder / f"{name}.jsonl"] = [holdings.examples[i] for i in indices]
    for part in ("val", "test"):
        held_out = sorted(int(i) for indices in divided.parts[part] for i in indices)
        if held_out:
            written[folder / f"{part}.jsonl"] = [holdings.examples[i] for i in held_out]
    for path, examples in written.items():
        _write(path, examples)
    return {path: len(examples) for path, examples in written.items()}


def _write(path: Path, examples: Iterable[Example]) -> None:
    with replacing(path) as file:
        for example in examples:
            file.write((json.dumps(row_of(example), ensure_ascii=False) + "\n").encode())
