"""The methods that are compared, and the rates that each is tried at.

Rates are spread by factors around what a first search found, so that the best is not at an end.
"""

from __future__ import annotations

from dataclasses import dataclass

from benchmarks.convergence.ours import configured
from benchmarks.convergence.peers import decomfl, fedkseed, mezo_fedavg
from benchmarks.convergence.task import Walk


@dataclass(frozen=True, slots=True)
class Method:
    """How to run one method.

    Args:
        walk: its rounds.
        rates: to try.
        overrides: of the configuration, as on the command line.
    """

    walk: Walk
    rates: tuple[float, ...]
    overrides: tuple[str, ...]


_PLAIN = ("train.zo.clip=0", "train.schedule.type=constant", "train.train_strategy=frozen", "train.zo.noise=gaussian")
_RANK_8 = ("llm.adapter.args.0.r=8", "llm.adapter.args.0.lora_alpha=16")
_RANK_1 = ("llm.adapter.args.0.r=1", "llm.adapter.args.0.lora_alpha=2")
_LONG = (*_PLAIN, "train.local_update_steps=20")
_SHORT = (*_PLAIN, "train.local_update_steps=5")
_TWO_POINT = ("train.zo.estimator=two-point", "train.zo.queries=1")
_BP = (*_SHORT, "trainer.type=llmtrainer", "federate.protocol=weights")

METHODS = {
    "FedMeZO, r=8": Method(configured, (0.01, 0.02, 0.03, 0.04), (*_LONG, *_RANK_8, *_TWO_POINT)),
    "FedMeZO, r=8, clip 0.3": Method(
        configured, (0.02, 0.03, 0.04, 0.06), (*_LONG, *_RANK_8, *_TWO_POINT, "train.zo.clip=0.3")
    ),
    "FedMeZO, r=1": Method(configured, (0.05, 0.1, 0.15, 0.2), (*_SHORT, *_RANK_1, *_TWO_POINT)),
    "two-point, scale-free, r=1": Method(
        configured, (0.015, 0.02, 0.03, 0.04), (*_SHORT, *_RANK_1, *_TWO_POINT, "train.train_strategy=scale-free")
    ),
    "one-sided 4, r=8": Method(
        configured,
        (0.01, 0.015, 0.02, 0.03),
        (*_SHORT, *_RANK_8, "train.zo.estimator=one-sided", "train.zo.queries=4"),
    ),
    "one-sided 4, r=1": Method(
        configured,
        (0.025, 0.05, 0.07, 0.1),
        (*_SHORT, *_RANK_1, "train.zo.estimator=one-sided", "train.zo.queries=4"),
    ),
    "one-sided 8, r=1": Method(
        configured,
        (0.04, 0.08, 0.12, 0.16),
        (*_SHORT, *_RANK_1, "train.zo.estimator=one-sided", "train.zo.queries=8"),
    ),
    "per-example, r=1": Method(
        configured,
        (0.025, 0.05, 0.07, 0.1),
        (*_SHORT, *_RANK_1, "train.zo.estimator=per-example", "train.zo.queries=1"),
    ),
    "MeZO-FedAvg, r=8": Method(mezo_fedavg, (0.01, 0.02, 0.03, 0.04), (*_LONG, *_RANK_8)),
    "FedKSeed, r=8": Method(fedkseed, (0.01, 0.02, 0.03, 0.04), (*_LONG, *_RANK_8)),
    "DeComFL, r=8": Method(decomfl, (0.02, 0.04, 0.06, 0.08), (*_LONG, *_RANK_8)),
    "back-propagation, SGD, r=8": Method(configured, (0.1, 0.3, 0.6, 1.0), (*_BP, *_RANK_8)),
    "back-propagation, AdamW, r=8": Method(
        configured, (0.001, 0.003, 0.01, 0.02), (*_BP, *_RANK_8, "train.optimizer.type=AdamW")
    ),
}
