"""Limits that a run has where its clients are others' machines, and its configuration says nothing of them."""

from __future__ import annotations

from fedmezo.config import Config

MAX_RATIO = 5.0
LARGEST_LOSS_CHANGE = 1.0
"""In nats per token, between theta + eps z and theta - eps z. A usable eps changes the loss by far less."""


def guarded(config: Config) -> Config:
    """The configuration with a clip for scalars and a limit on how unlike the others a report may be.

    Each of them can be set to 0, which is none. Normalised scalars are bounded as they are.
    """
    federate, zo = config.federate, config.train.zo
    if federate.max_ratio is None:
        ratio = 0.0 if federate.secure_aggregation else MAX_RATIO  # nobody sees what it would compare
        federate = federate.model_copy(update={"max_ratio": ratio})
    unbounded = config.trainer.type == "mezotrainer" and zo.estimator == "two-point"
    if unbounded and "clip" not in zo.model_fields_set:
        zo = zo.model_copy(update={"clip": LARGEST_LOSS_CHANGE / (2 * zo.scale)})
    train = config.train.model_copy(update={"zo": zo})
    return config.model_copy(update={"federate": federate, "train": train})
