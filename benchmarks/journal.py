"""What a journal weighs, what its durability costs, and how long its replay takes: python -m benchmarks.journal.

The replay is of 90 scalars a round (3 clients with 30 steps) on one thread, unless OMP_NUM_THREADS says otherwise; a
few rounds are measured and the time scaled to 1,000.
"""

from __future__ import annotations

import os
import random
import tempfile
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

import torch

from fedmezo.federation.aggregate import apply_scalars_
from fedmezo.records import Contribution, RoundRecord, Segment
from fedmezo.results.metrics import METRICS_FILE, MetricsFile, measured
from fedmezo.runs.format import Header
from fedmezo.runs.journal import JournalWriter
from fedmezo.runs.log_file import PublishedLog, encode_log
from fedmezo.zo.arithmetic import round_coefficient, round_scalar, state_hash
from fedmezo.zo.estimators.protocol import Settings
from fedmezo.zo.estimators.two_point import TwoPoint
from fedmezo.zo.noise import noise_for

ROUNDS, CLIENTS, STEPS = 500, 3, 30
SIZES = {"0.3 M": 300_000, "2.7 M": 2_700_000, "42.6 M": 42_600_000}
"""Trainable parameters, from a tiny adapter to a large one."""


def main() -> None:
    """Print the figures."""
    print(f"threads: {torch.get_num_threads()}")
    records = [record(index) for index in range(ROUNDS)]
    with tempfile.TemporaryDirectory(dir=".") as folder:
        sizes_and_durability(Path(folder), records)
    for name, num_parameters in SIZES.items():
        replay(name, num_parameters, records)


def sizes_and_durability(folder: Path, records: list[RoundRecord]) -> None:
    """Bytes of the files, and what putting them on disk takes in each round."""
    writer = JournalWriter.create(folder / "journal.jsonl", HEADER)
    per_round = milliseconds_each([partial(writer.append, one) for one in records])
    size = (folder / "journal.jsonl").stat().st_size
    print(f"journal.jsonl, {ROUNDS} rounds, {CLIENTS} clients, {STEPS} steps: {size:,} B; {per_round:.2f} ms a round")
    published = len(encode_log(PublishedLog(HEADER, tuple(records), "00" * 32)))
    print(f"published log: {published:,} B, of which scalars {2 * ROUNDS * CLIENTS * STEPS:,} B before compression")
    sink = MetricsFile(folder)
    metrics = [measured("train_loss", 1 / 3, round_index=1, client=client) for client in range(20)]
    durable = milliseconds_each([partial(sink.write, metrics)] * 100)
    plain = milliseconds_each([partial(write_only, folder / METRICS_FILE)] * 100)
    print(f"metrics of a round on disk: {durable:.2f} ms; only written, not put on disk: {plain:.2f} ms")


def replay(name: str, num_parameters: int, records: list[RoundRecord]) -> None:
    """Seconds to apply rounds and hash the state after each."""
    theta = torch.zeros(num_parameters)
    noise = noise_for(HEADER.noise, 1000 * CLIENTS * STEPS * num_parameters, theta.device)  # as `fedmezo replay` does
    estimator = TwoPoint(Settings(HEADER.eps, HEADER.queries, noise))
    apply_scalars_(theta[:1000], records[0], HEADER.seed, estimator)  # the table of quantiles is made once
    rounds = max(1, 3_000_000 // num_parameters)

    def work(one: RoundRecord) -> None:
        apply_scalars_(theta, one, HEADER.seed, estimator)
        state_hash(theta)

    started = time.process_time()  # what other programs take of the machine does not count
    for one in records[:rounds]:
        work(one)
    seconds = 1000 * (time.process_time() - started) / rounds
    print(
        f"{name} parameters ({4 * num_parameters / 1e6:.1f} MB as float32): replay {seconds:,.0f} CPU s per 1,000 "
        f"rounds of {CLIENTS * STEPS} steps ({rounds} measured)"
    )


def record(index: int) -> RoundRecord:
    """A round with scalars, rates and losses like a run's."""
    rng = random.Random(index)
    parts = tuple(
        Contribution(
            client=client,
            rate=round_coefficient(rng.uniform(5e-6, 1.5e-5)),
            weight=round_coefficient(1 / CLIENTS),
            num_examples=STEPS,
            train_loss=rng.uniform(1, 2),
            skipped_steps=0,
            scalars=tuple(round_scalar(rng.gauss(0, 20)) for _ in range(STEPS)),
        )
        for client in range(CLIENTS)
    )
    return RoundRecord(index, tuple(range(CLIENTS)), parts, (), f"{rng.getrandbits(256):064x}")


def milliseconds_each(calls: Sequence[Callable[[], object]]) -> float:
    """Wall-clock time of one of many calls."""
    started = time.perf_counter()
    for call in calls:
        call()
    return 1000 * (time.perf_counter() - started) / len(calls)


def write_only(path: Path) -> None:
    """Append about as much without waiting for the disk."""
    with path.open("ab") as file:
        file.write(b"x" * 2000)


HEADER = Header(
    seed=1,
    rounds=ROUNDS,
    protocol="scalars",
    noise="gaussian",
    eps=1e-3,
    queries=1,
    base="some/model",
    base_hash="00" * 32,
    dtype="float16",
    adapter={"adapter_method": "lora", "r": 8, "lora_alpha": 16, "target_modules": ["q_proj", "v_proj"]},
    theta_hash="00" * 32,
    restored=False,
    data_hash="00" * 32,
    partition_hash="00" * 32,
    segments=tuple(
        Segment(f"base_model.model.model.layers.{i}.lora_A.weight", (8, 3200), 25600 * i) for i in range(104)
    ),
)


if __name__ == "__main__":
    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", "1")))
    main()
