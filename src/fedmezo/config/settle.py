"""Keys that were not given, where their default does not fit the keys that were."""

from __future__ import annotations

from typing import Any

from fedmezo.config.schema import Config

_EMPTY = {"val": "validation", "test": "test"}


def settled(config: Config) -> tuple[Config, list[str]]:
    """The configuration with such keys settled, and what the user should be told."""
    config, notices = _with_split(config)
    config, more = _with_noise(config)
    return config, notices + more


def _with_noise(config: Config) -> tuple[Config, list[str]]:
    """Directions of low rank where all parameters are trained, unless others were asked for."""
    zo = config.train.zo
    if config.llm.adapter.use or config.trainer.type != "mezotrainer" or zo.noise == "low-rank":
        return config, []
    if "noise" in zo.model_fields_set:
        return config, [
            f"train.zo.noise {zo.noise}: without an adapter each step makes all directions of its client's round "
            "again, and is slower than the one before it; low-rank, the default then, does not"
        ]
    train = config.train.model_copy(update={"zo": zo.model_copy(update={"noise": "low-rank"})})
    return config.model_copy(update={"train": train}), []


def _with_split(config: Config) -> tuple[Config, list[str]]:
    """The configuration with `eval.split` narrowed to the parts that have a share, unless it was given.

    What hangs on it follows: the metric that decides the best round, and early stopping where nothing is left to
    evaluate. Returns what the user should be told, too.
    """
    shares = dict(zip(("train", "val", "test"), config.data.splits, strict=True))
    kept = tuple(part for part in config.eval.split if shares[part] > 0)
    if "split" in config.eval.model_fields_set or not config.eval.active or kept == config.eval.split:
        return config, []
    empty = " or ".join(_EMPTY[part] for part in config.eval.split if part not in kept)
    if not kept:
        return _unevaluated(config), [f"nothing is evaluated: data.splits gives no {empty} examples"]
    changes: dict[str, Any] = {"split": kept}
    notice = f"only the {_EMPTY[kept[0]]} loss is evaluated: data.splits gives no {empty} examples"
    part, _, metric = config.eval.best_res_update_round_wise_key.partition("_")
    if part not in kept:
        changes["best_res_update_round_wise_key"] = key = f"{kept[0]}_{metric}"
        notice += f"; the best round is that of the {'lowest' if metric == 'loss' else 'highest'} {key}"
    return config.model_copy(update={"eval": config.eval.model_copy(update=changes)}), [notice]


def _unevaluated(config: Config) -> Config:
    sections: dict[str, Any] = {"eval": config.eval.model_copy(update={"split": ()})}
    if "patience" not in config.early_stop.model_fields_set:
        sections["early_stop"] = config.early_stop.model_copy(update={"patience": 0})
    return config.model_copy(update=sections)
