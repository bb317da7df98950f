"""A strategy, a metric and a function that watches, all written here and handed over: nothing to register.

Run: python examples/own_parts.py [OUTDIR]
"""

import sys
from collections.abc import Mapping, Sequence
from typing import Any

import torch

import fedmezo
from fedmezo.federation.rates import ClientHistory

SETTINGS: dict[str, Any] = {
    "federate.total_round_num": 4,
    "train.local_update_steps": 5,
    "eval.samples": 0,
    "eval.freq": 2,
}


def worst_first(
    seed: int, round_index: int, cohort: Sequence[int], histories: Mapping[int, ClientHistory]
) -> list[float]:
    """Offsets Phi from -1 to 1; a client's rate is eta_0 + alpha Phi. The highest loss learns fastest."""
    losses = [histories[client].losses[-1] if client in histories else 0.0 for client in cohort]
    return [1.0 if loss == max(losses) > 0 else 0.0 for loss in losses]


def adapter_size(model: Any, tokenizer: Any) -> float:
    """The L2 norm of the adapter, measured at every evaluation."""
    with torch.no_grad():
        squares = [tensor.square().sum() for name, tensor in model.named_parameters() if "lora_" in name]
        return float(torch.stack(squares).sum().sqrt())


def watch(event: fedmezo.RoundEvent) -> None:
    """Called after each round, once it is in the journal."""
    rates = [event.value("rate", client) for client in range(3)]
    print(f"round {event.round}: train loss {event.value('train_loss')}, rates {rates}")


run = fedmezo.run(
    outdir=sys.argv[1] if len(sys.argv) > 1 else "runs",
    expname="own-parts",
    strategy=worst_first,
    metrics={"adapter_size": adapter_size},
    on_round=watch,
    quiet=True,
    **SETTINGS,
)
print("size of the adapter:", run.values("adapter_size"))
print("replayed:", fedmezo.replay(run.folder) == run.journal.hashes[-1])
