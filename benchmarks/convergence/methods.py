"""The methods that are compared, and the rates that each is tried at.

Rates are spread by factors around what a first search found, so that the best is not at an end.
"""

from __future__ import annotations

from dataclasses import dataclass

from benchmarks.convergence.ours import at_server_rate, bfloat16_at_random, bfloat16_to_nearest, configured
from benchmarks.convergence.peers import decomfl, fedkseed, mezo_fedavg
from benchmarks.convergence.task import Walk
from benchmarks.convergence.tried import adamezo, adamezo_per_example, fzoo, grzo, hiso


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


_PLAIN = (
    "train.zo.clip=0", "train.schedule.type=constant", "train.train_strategy=frozen", "train.zo.noise=gaussian",
    "train.trust=False",
)  # fmt: skip
_SHORT = (*_PLAIN, "train.local_update_steps=5")
_LONG = (*_PLAIN, "train.local_update_steps=20")
_RANK_8 = ("llm.adapter.args.0.r=8", "llm.adapter.args.0.lora_alpha=16")
_RANK_1 = ("llm.adapter.args.0.r=1", "llm.adapter.args.0.lora_alpha=2")
_TWO_POINT = ("train.zo.estimator=two-point", "train.zo.queries=1")
_ONE_SIDED = ("train.zo.estimator=one-sided", "train.zo.queries=4")
_PER_EXAMPLE = ("train.zo.estimator=per-example", "train.zo.queries=1")
_SCALE_FREE = "train.train_strategy=scale-free"
_ALL = (*_SHORT, *_TWO_POINT, "llm.adapter.use=False", "train.zo.eps=1e-3", "train.trust=True")
_ALL_RATES = (6e-4, 8e-4, 1.1e-3)
_BP = (*_SHORT, "trainer.type=llmtrainer", "federate.protocol=weights")
_COARSER = "train.zo.eps=0.03"
"""In bfloat16 at rank 1 the losses move less, and rounding counts for more."""


def _ours(rates: tuple[float, ...], *overrides: str) -> Method:
    return Method(configured, rates, (*_SHORT, *overrides))


def _server(method: str, rates: tuple[float, ...], rate: float) -> Method:
    """Per-example steps under a server's optimiser, whose rate is that of the bench; `rate` is the clients'."""
    chosen = (
        f"federate.method={method}",
        f"train.optimizer.lr={rate}",
        f"train.lr_width={rate / 2}",
        "fedopt.lr_server=1",
    )
    return Method(at_server_rate, rates, (*_SHORT, *_RANK_1, *_PER_EXAMPLE, *chosen))


BUNDLED = {
    "two-point, r=8": Method(configured, (0.01, 0.02, 0.03, 0.04), (*_LONG, *_RANK_8, *_TWO_POINT)),
    "two-point, r=8, clip 0.3": Method(
        configured, (0.02, 0.03, 0.04, 0.06), (*_LONG, *_RANK_8, *_TWO_POINT, "train.zo.clip=0.3")
    ),
    "two-point, r=1": _ours((0.05, 0.1, 0.15, 0.2), *_RANK_1, *_TWO_POINT),
    "one-sided 4, r=8": _ours((0.01, 0.015, 0.02, 0.03), *_RANK_8, *_ONE_SIDED),
    "one-sided 4, r=1": _ours((0.025, 0.05, 0.07, 0.1), *_RANK_1, *_ONE_SIDED),
    "one-sided 8, r=1": _ours((0.04, 0.08, 0.12, 0.16), *_RANK_1, *_ONE_SIDED, "train.zo.queries=8"),
    "per-example, r=8": _ours((0.01, 0.015, 0.02, 0.03), *_RANK_8, *_PER_EXAMPLE),
    "per-example, r=1": _ours((0.025, 0.05, 0.07, 0.1), *_RANK_1, *_PER_EXAMPLE),
    "two-point, scale-free, r=8": _ours((0.005, 0.01, 0.015, 0.02), *_RANK_8, *_TWO_POINT, _SCALE_FREE),
    "two-point, scale-free, r=1": _ours((0.015, 0.02, 0.03, 0.04), *_RANK_1, *_TWO_POINT, _SCALE_FREE),
    "per-example, r=1, FedAvgM": _server("FedAvgM", (0.1, 0.2, 0.4, 0.8), 0.05),
    "per-example, r=1, FedAdam": _server("FedAdam", (0.01, 0.03, 0.06, 0.1), 0.05),
    "per-example, r=1, FedYogi": _server("FedYogi", (0.01, 0.03, 0.06, 0.1), 0.05),
    "all parameters, rank 1": Method(configured, _ALL_RATES, (*_ALL, "train.zo.noise=low-rank")),
    "all parameters, rank 4": Method(configured, _ALL_RATES, (*_ALL, "train.zo.noise=low-rank", "train.zo.rank=4")),
    "all parameters, bfloat16 at random": Method(bfloat16_at_random, _ALL_RATES, (*_ALL, "train.zo.noise=low-rank")),
    "all parameters, bfloat16 to nearest": Method(bfloat16_to_nearest, _ALL_RATES, (*_ALL, "train.zo.noise=low-rank")),
    "all parameters, Gaussian": Method(configured, _ALL_RATES, (*_ALL, "federate.total_round_num=400")),
    "MeZO-FedAvg, r=8": Method(mezo_fedavg, (0.01, 0.02, 0.03, 0.04), (*_LONG, *_RANK_8)),
    "FedKSeed, r=8": Method(fedkseed, (0.01, 0.02, 0.03, 0.04), (*_LONG, *_RANK_8)),
    "DeComFL, r=8": Method(decomfl, (0.02, 0.04, 0.06, 0.08), (*_LONG, *_RANK_8)),
    "FZOO 4 as published, r=1": Method(fzoo, (0.01, 0.02, 0.04, 0.08), (*_SHORT, *_RANK_1)),
    "GRZO as published, r=1": Method(grzo, (0.025, 0.05, 0.07, 0.1), (*_SHORT, *_RANK_1)),
    "AdaMeZO, r=1": Method(adamezo, (0.005, 0.01, 0.02, 0.04), (*_SHORT, *_RANK_1)),
    "AdaMeZO over per-example, r=1": Method(adamezo_per_example, (0.005, 0.01, 0.02, 0.04), (*_SHORT, *_RANK_1)),
    "HiSo, r=1": Method(hiso, (0.05, 0.1, 0.2, 0.4), (*_SHORT, *_RANK_1)),
    "back-propagation, SGD, r=8": Method(configured, (0.1, 0.3, 0.6, 1.0), (*_BP, *_RANK_8)),
    "back-propagation, AdamW, r=8": Method(
        configured, (0.001, 0.003, 0.01, 0.02), (*_BP, *_RANK_8, "train.optimizer.type=AdamW")
    ),
}

SMOLLM2 = {
    "two-point, r=8": _ours((0.001, 0.0015, 0.003, 0.01), *_RANK_8, *_TWO_POINT),
    "two-point, r=1": _ours((0.01, 0.03), *_RANK_1, *_TWO_POINT, _COARSER),
    "two-point, scale-free, r=1": _ours((0.01, 0.02), *_RANK_1, *_TWO_POINT, _COARSER, _SCALE_FREE),
    "one-sided 4, r=1": _ours((0.02, 0.05), *_RANK_1, *_ONE_SIDED, _COARSER),
    "per-example, r=8": _ours((0.002, 0.005), *_RANK_8, *_PER_EXAMPLE),
    "per-example, r=1": _ours((0.012, 0.03, 0.08, 0.2), *_RANK_1, *_PER_EXAMPLE, _COARSER),
}
