"""A run over a program's own objects: its model, and its examples already divided among the clients."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, TypeAlias

import numpy as np
from rich.console import Console

from fedmezo.config import Config
from fedmezo.data.encode import encode_examples
from fedmezo.data.parse import examples_of
from fedmezo.data.partition import Indices, Partition
from fedmezo.data.rows import Layout
from fedmezo.engines.rounds import Engine
from fedmezo.errors import DataError
from fedmezo.federation.downlink import Downlink
from fedmezo.federation.round import Federation
from fedmezo.records import Example
from fedmezo.runs import assemble
from fedmezo.runs.assemble import HandedBase, Holdings, TunedModel
from fedmezo.runs.own import Own
from fedmezo.runs.placement import Here

logger = logging.getLogger(__name__)

HANDED_OVER = "handed-over-in-python"
"""The name of a model and a data set that a program handed over, in `model.type` and `data.type`."""

Rows: TypeAlias = Iterable[Mapping[str, Any]]
"""A list of rows, a `datasets.Dataset` or the like; each in one of the forms that data files may have."""


@dataclass(frozen=True, slots=True)
class GivenExamples:
    """Who holds what.

    Args:
        clients: each client's training examples.
        validation: held out, to decide the best round; may be empty.
        test: held out besides; may be empty.
    """

    clients: tuple[tuple[Example, ...], ...]
    validation: tuple[Example, ...] = ()
    test: tuple[Example, ...] = ()


def given_examples(clients: Sequence[Rows], validation: Rows = (), test: Rows = ()) -> GivenExamples:
    """Read rows as the lines of a data file are read.

    Raises:
        DataError: a row is none of the known forms; a client has none; there is no client.
    """
    if not clients:
        raise DataError("clients is empty: at least one client needs training examples")
    read = tuple(_read(f"clients[{number}]", rows) for number, rows in enumerate(clients))
    return GivenExamples(read, _read_if_any("validation", validation), _read_if_any("test", test))


def _read(name: str, rows: Rows) -> tuple[Example, ...]:
    located = ((f"{name}, row {number}", _plain(row)) for number, row in enumerate(rows))
    return tuple(examples_of(name, located, Layout()))


def _read_if_any(name: str, rows: Rows) -> tuple[Example, ...]:
    listed = list(rows)
    return _read(name, listed) if listed else ()


def _plain(row: object) -> object:
    """A mapping as a dict, which is what the forms are told by."""
    return dict(row) if isinstance(row, Mapping) else row


@dataclass(frozen=True, slots=True, eq=False)
class Given:
    """A `runs.placement.Placement`: all clients are simulated in this process, over what a program handed over."""

    base: HandedBase
    examples: GivenExamples
    own: Own
    by_client: ClassVar[bool] = True

    def model(self, config: Config) -> TunedModel:
        """The program's model, with an adapter built into it."""
        return assemble.load_model(config, self.base)

    def holdings(self, config: Config, tuned: TunedModel, console: Console) -> Holdings:
        """Encode the examples; what is held out counts as the first client's."""
        given = self.examples
        parts = [*given.clients, given.validation, given.test]
        examples = [example for part in parts for example in part]
        prompts = assemble.make_prompts(config, tuned.tokenizer)
        dataset = encode_examples(examples, tuned.tokenizer, config.llm.tok_len, None, prompts)
        shards = _shards([len(part) for part in parts], dataset.kept)
        train, held_out = shards[: len(given.clients)], shards[len(given.clients) :]
        if empty := [client for client, shard in enumerate(train) if not len(shard)]:
            raise DataError(f"clients[{empty[0]}]: no example has an answer within tok_len {config.llm.tok_len} tokens")
        kept = tuple(examples[i] for i in dataset.kept)
        divided = _partition(kept, train, *held_out)
        assemble.require_fit(config, tuned, dataset)
        for notice in assemble.use_lanes(config, tuned, dataset):
            logger.warning(notice)
        return Holdings(kept, dataset, divided, prompts)

    def engine(
        self, config: Config, tuned: TunedModel, holdings: Holdings, federation: Federation, downlink: Downlink
    ) -> Engine:
        """The simulation."""
        return Here(self.own).engine(config, tuned, holdings, federation, downlink)

    def is_waiting(self) -> bool:
        """Never: the clients are here."""
        return False

    def resume_command(self, folder: Path) -> str:
        """A call, since only the program has model and data."""
        return f"fedmezo.tune(..., resume={str(folder)!r})"


def _shards(sizes: Sequence[int], kept: Indices) -> list[Indices]:
    """Which of the kept examples, by their new numbers, are of each part; the parts lie one behind the other."""
    stops = np.cumsum(sizes)
    part_of = np.searchsorted(stops, kept, side="right")
    return [np.flatnonzero(part_of == part).astype(np.int64) for part in range(len(sizes))]


def _partition(kept: Sequence[Example], train: Sequence[Indices], val: Indices, test: Indices) -> Partition:
    nothing = np.zeros(0, dtype=np.int64)
    categories, category_of = np.unique(np.array([e.category for e in kept], dtype=object), return_inverse=True)
    others = (nothing,) * (len(train) - 1)
    return Partition(
        splitter="as handed over",
        categories=tuple(categories.tolist()),
        category_of=category_of.astype(np.int64),
        train=tuple(train),
        val=(val, *others),
        test=(test, *others),
    )
