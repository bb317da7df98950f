"""What several machines cost, measured on this one: `python -m benchmarks.machines [FOLDER]`.

Time that the engine adds to a round, bytes of a site at the transport beside the payload, processor time of a site
that waits, and a round with adapters of 100 MB. Proxies between sites and server count the bytes; connections are
encrypted, as they are by default.
"""

from __future__ import annotations

import json
import sys
import tempfile
import time
from pathlib import Path
from statistics import median
from typing import Any

import psutil

from tests.machines import SITES, WORKER, Machines
from tests.waiting import wait_until

ROUNDS = 200
IDLE_SECONDS = 30.0
LARGE: dict[str, Any] = {
    "trainer.type": "llmtrainer",
    "federate.protocol": "weights",
    "federate.total_round_num": 4,
    "llm.adapter.args": [{"r": 56_000, "target_modules": ["q_proj", "k_proj", "v_proj", "o_proj"]}],
}


def main() -> None:
    """Measure everything."""
    folder = Path(sys.argv[1]) if len(sys.argv) > 1 else Path(tempfile.mkdtemp(prefix="machines-"))
    machines = Machines(folder, through_proxies=True)
    small = {"federate.min_clients": 3, "eval.freq": 0, "train.lanes": 1, "train.local_update_steps": 1}
    config = machines.config("small", **{**small, "federate.total_round_num": ROUNDS})
    machines.run("partition", config, "--out", folder / "shares")
    try:
        for kit in machines.sites:
            machines.start_site(kit)
        rounds(machines, config)
        idle(machines, machines.config("endless", **{**small, "federate.total_round_num": 10**6}))
        large(machines, machines.config("large", **{**small, **LARGE}))
    finally:
        machines.close()


def rounds(machines: Machines, config: Path) -> None:
    """Time and bytes of a round in which there is next to nothing to compute."""
    before = _carried(machines)
    machines.run("serve", machines.server.folder, config)
    carried = (_carried(machines) - before) / len(SITES)
    measured = _metrics(machines, "small")
    took = sorted(measured["seconds"][1:])
    work = _seconds_of_work(machines)
    print(
        f"round: median {median(took):.3f} s, slowest {took[-1]:.3f} s, of which the slowest site's work {work:.3f} s"
    )
    payload = (sum(measured["bytes_up"]) + sum(measured["bytes_down"])) / len(SITES)
    print(f"a site in {ROUNDS} rounds: {payload / ROUNDS:.0f} B of payload a round, both ways together;")
    print(f"  {carried / ROUNDS:.0f} B a round at the transport, with all from registering to leaving")


def idle(machines: Machines, config: Path) -> None:
    """Processor time of a site's processes while the training loop is stopped."""
    server = machines.start("server", "serve", machines.server.folder, config)
    wait_until(lambda: len(machines.journal("endless")) > 5, "rounds")
    psutil.Process(server.pid).suspend()
    time.sleep(2)
    family = [process for process in machines.processes(SITES[0])]
    carried, spent, started = _carried(machines), _cpu(family), time.monotonic()
    time.sleep(IDLE_SECONDS)
    seconds = time.monotonic() - started
    share = (_cpu(family) - spent) / seconds
    memory = sum(process.memory_info().rss for process in family if WORKER not in " ".join(process.cmdline()))
    traffic = (_carried(machines) - carried) / len(SITES) / seconds
    print(
        f"a site that waits: {100 * share:.1f} % of a core, {traffic:.0f} B/s, {memory / 1e6:.0f} MB beside the worker"
    )
    server.kill()
    server.wait()


def large(machines: Machines, config: Path) -> None:
    """Rounds with an adapter of 100 MB each way."""
    machines.run("serve", machines.server.folder, config, seconds=600)
    measured = _metrics(machines, "large")
    sent = measured["bytes_up"][-1] / len(SITES)
    took = ", ".join(f"{seconds:.1f}" for seconds in measured["seconds"])
    print(f"weights of {sent / 1e6:.1f} MB each way, three sites: rounds of {took} s")


def _carried(machines: Machines) -> int:
    return sum(proxy.bytes_up + proxy.bytes_down for proxy in machines.proxies.values())


def _cpu(family: list[psutil.Process]) -> float:
    return sum(sum(process.cpu_times()[:2]) for process in family)


def _seconds_of_work(machines: Machines) -> float:
    """The same round's work in the simulation, a client after the other, divided by the clients."""
    path = machines.root / "small.yaml"
    machines.run("run", path, "expname=simulated")
    return median(_metrics(machines, "simulated")["seconds"][1:]) / len(SITES)


def _metrics(machines: Machines, name: str) -> dict[str, list[float]]:
    """The figures over all clients, by name."""
    found: dict[str, list[float]] = {}
    for line in (machines.root / "runs" / name / "metrics.jsonl").read_text().splitlines():
        metric = json.loads(line)
        if metric["client"] is None:
            found.setdefault(metric["name"], []).append(metric["value"])
    return found


if __name__ == "__main__":
    main()
