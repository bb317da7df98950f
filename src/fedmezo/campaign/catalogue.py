"""Reads catalogue.yaml: which configurations make up each item of the paper, and the paper's own numbers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path
from typing import Any

import yaml

from fedmezo.errors import ConfigError

CATALOGUE_FILE = Path(__file__).parent / "catalogue.yaml"
ALL = "all"
OF_THE_PAPER = ("small", "paper")
"""The scales of an item that names none."""


@dataclass(frozen=True, slots=True)
class PointSpec:
    """One configuration of an item, at one scale."""

    label: str
    settings: Mapping[str, Any]  # over the scale's base, by dotted key
    paper: Mapping[str, float]  # the paper's figures by the heading of their column
    loss: Mapping[int, float]  # the paper's loss by round
    downstream: Mapping[str, Sequence[float]]  # the paper's percentages by task, one for each round
    is_larger: bool = False  # whether it is of the larger model that others are compared with


@dataclass(frozen=True, slots=True)
class DownstreamSpec:
    """Tasks that an item evaluates at some rounds."""

    rounds: tuple[int, ...]  # of the paper's
    tasks: Mapping[str, str]  # at this scale: task and what to call it
    every_seed: bool  # or the first alone
    limit: int | None  # only so many items of each task


@dataclass(frozen=True, slots=True)
class ItemSpec:
    """A table or figure, at one scale."""

    name: str
    title: str
    about: str
    columns: tuple[str, ...]
    by_round: bool
    against: tuple[str, ...]
    swept: str  # the key of the one number that differs between the points, or nothing
    downstream: DownstreamSpec | None
    figures: tuple[int, ...]  # of the paper
    points: tuple[PointSpec, ...]


@dataclass(frozen=True, slots=True)
class Scale:
    """How large the experiments are."""

    name: str
    about: str
    base: Path
    seeds: int
    items: Mapping[str, ItemSpec]


def scale_names() -> tuple[str, ...]:
    """The scales there are."""
    return tuple(_catalogue()["scales"])


def read_scale(name: str) -> Scale:
    """Every item at one scale."""
    content = _catalogue()
    scale = content["scales"][name]
    base = CATALOGUE_FILE.parent / str(scale["base"])
    wanted = {key: item for key, item in content["items"].items() if name in item.get("scales", OF_THE_PAPER)}
    items = {key: _item(key, item, name, content) for key, item in wanted.items()}
    return Scale(name, scale["about"], base, scale["seeds"], items)


def choose(scale: Scale, name: str) -> list[ItemSpec]:
    """The items that a name stands for: one of them, those of a figure of the paper (`figure6`), or all.

    Raises:
        ConfigError: there is no such item.
    """
    if name == ALL:
        return list(scale.items.values())
    if of_figure := [item for item in scale.items.values() if name in (f"figure{number}" for number in item.figures)]:
        return of_figure
    if name not in scale.items:
        close = "".join(f" (did you mean {match}?)" for match in get_close_matches(name, scale.items, n=1))
        raise ConfigError(f"there is no item {name!r}{close}; there are {', '.join([ALL, *scale.items])}")
    return [scale.items[name]]


def _catalogue() -> dict[str, Any]:
    content: dict[str, Any] = yaml.safe_load(CATALOGUE_FILE.read_text(encoding="utf-8"))
    return content


def _item(name: str, item: Mapping[str, Any], scale: str, content: Mapping[str, Any]) -> ItemSpec:
    downstream = item.get("downstream")
    return ItemSpec(
        name=name,
        title=item["title"],
        about=" ".join(item["about"].split()),
        columns=tuple(item["columns"]),
        by_round=item.get("by_round", False),
        against=tuple(item.get("against", ())),
        swept=item.get("swept", ""),
        downstream=_downstream(downstream, scale) if downstream else None,
        figures=tuple(item.get("figures", ())),
        points=tuple(_point(p, scale, content) for p in item["points"] if scale in p.get("scales", (scale,))),
    )


def _downstream(downstream: Mapping[str, Any], scale: str) -> DownstreamSpec:
    every_seed, limit = downstream.get("every_seed", False), downstream.get("limit")
    return DownstreamSpec(tuple(downstream["rounds"]), downstream[scale], every_seed, limit)


def _point(point: Mapping[str, Any], scale: str, content: Mapping[str, Any]) -> PointSpec:
    task = point["task"] if isinstance(point["task"], str) else point["task"][scale]
    settings = dict(content["scales"][scale]["settings"])
    for part in (content["tasks"][task], content["methods"][point["method"]], point.get("set", {})):
        settings |= _at_scale(part, scale, content)
    return PointSpec(
        point["label"],
        settings,
        point.get("paper", {}),
        point.get("loss", {}),
        point.get("downstream", {}),
        point.get("larger", False),
    )


def _at_scale(part: Mapping[str, Any], scale: str, content: Mapping[str, Any]) -> dict[str, Any]:
    """The settings for all scales, and over them those of this one."""
    common: dict[str, Any] = {key: value for key, value in part.items() if key not in content["scales"]}
    common.update(part.get(scale, {}))
    return common
