"""Which client holds which examples for training, validation and test."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from math import isfinite
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from fedmezo.data.splitters import Splitter
from fedmezo.errors import DataError

Indices = NDArray[np.int64]

PARTS = ("train", "val", "test")
FORMAT = "fedmezo-partition"
VERSION = 1
MAX_DRAWS = 100  # of random shares, until every client has training data


class CountRow(NamedTuple):
    """How many examples of a category a client holds in a part."""

    client: int
    part: str
    category: str
    num_examples: int


@dataclass(frozen=True, slots=True, eq=False)
class Partition:
    """A division of the examples 0 to n - 1: every one is in exactly one part of one client, in ascending order."""

    splitter: str
    categories: tuple[str, ...]  # k, sorted
    category_of: Indices  # (n,) index into `categories`
    train: tuple[Indices, ...]  # one per client, as are `val` and `test`
    val: tuple[Indices, ...]
    test: tuple[Indices, ...]

    @property
    def num_clients(self) -> int:
        """How many clients there are."""
        return len(self.train)

    @property
    def num_examples(self) -> int:
        """How many examples there are, over all clients and parts."""
        return len(self.category_of)

    @property
    def parts(self) -> dict[str, tuple[Indices, ...]]:
        """The three parts by name, in the order train, val, test."""
        return {"train": self.train, "val": self.val, "test": self.test}

    def sizes(self, part: str) -> tuple[int, ...]:
        """Count each client's examples in a part."""
        return tuple(len(indices) for indices in self.parts[part])

    def rows(self) -> list[CountRow]:
        """List what each client holds, by part and category, without the zeros."""
        return [
            CountRow(client, part, self.categories[category], int(count))
            for client in range(self.num_clients)
            for part, clients in self.parts.items()
            for category, count in enumerate(np.bincount(self.category_of[clients[client]]))
            if count
        ]

    def to_json(self) -> str:
        """Write everything as one line of JSON."""
        document = {
            "format": FORMAT,
            "version": VERSION,
            "splitter": self.splitter,
            "categories": self.categories,
            "category_of": self.category_of.tolist(),
            "clients": [
                {part: clients[client].tolist() for part, clients in self.parts.items()}
                for client in range(self.num_clients)
            ],
        }
        return json.dumps(document, separators=(",", ":"))

    @classmethod
    def from_json(cls, text: str, where: str = "partition.json") -> Partition:
        """Read what `to_json` wrote; `where` names it in errors.

        Raises DataError: not JSON, another format or version, an example that is missing or in two places.
        """
        try:
            document = json.loads(text)
            _check_version(document, where)
            parts = {part: _indices_of(document["clients"], part) for part in PARTS}
            category_of = np.array(document["category_of"], dtype=np.int64)
            partition = cls(document["splitter"], tuple(document["categories"]), category_of, **parts)
        except DataError:
            raise
        except (ValueError, RecursionError, KeyError, TypeError, OverflowError) as error:
            raise DataError(f"{where}: damaged ({type(error).__name__}: {error}); restore it from a backup") from error
        _check_complete(partition, where)
        return partition


def partition(
    categories: Sequence[str],
    fractions: Sequence[float],
    num_clients: int,
    splitter: Splitter,
    rng: np.random.Generator,
) -> Partition:
    """Divide n examples, given by their categories, among clients: first into train, val and test, then by `splitter`.

    A client's share of a category is in val and test what it is in train, rounded up or down at random so that it is
    right on average; that may be nothing. Examples without a category form one of their own, ''.

    Raises DataError if a client is left without training examples.
    """
    names, category_of = np.unique(np.array(categories, dtype=object), return_inverse=True)
    groups = category_of if splitter.by_category else np.zeros_like(category_of)
    parts = split(len(categories), fractions, rng)
    counts = [np.bincount(groups[part], minlength=groups.max() + 1) for part in parts]
    shares, train_quotas = _draw_shares(counts[0], num_clients, splitter, rng)
    quotas = [train_quotas, *(_quotas(shares, count, rng) for count in counts[1:])]
    dealt = (_deal(part, groups, quota) for part, quota in zip(parts, quotas, strict=True))
    return Partition(str(splitter), tuple(names.tolist()), category_of.astype(np.int64), *dealt)


def split(num_examples: int, fractions: Sequence[float], rng: np.random.Generator) -> tuple[Indices, Indices, Indices]:
    """Cut a random order of the examples into train, val and test.

    A part whose fraction is above 0 gets at least one example, one whose fraction is 0 gets none. Raises DataError.
    """
    _check_fractions(fractions)
    least = [int(fraction > 0) for fraction in fractions]
    if num_examples < sum(least):
        raise DataError(f"data.splits asks for {sum(least)} parts of {num_examples} examples: there are too few")
    ends = [0]
    for part in range(len(PARTS)):
        end = max(round(sum(fractions[: part + 1]) / sum(fractions) * num_examples), ends[-1] + least[part])
        ends.append(min(end, num_examples - sum(least[part + 1 :])))
    train, val, test = np.split(rng.permutation(num_examples), ends[1:-1])
    return train, val, test


def subsample(categories: Sequence[str], fraction: float, rng: np.random.Generator) -> Indices:
    """Draw `fraction` of each category, at least one example of each, and return them in ascending order."""
    if not 0 < fraction <= 1:
        raise DataError(f"data.subsample is {fraction}; it must be above 0 and at most 1")
    category_of = np.unique(np.array(categories, dtype=object), return_inverse=True)[1]
    order = rng.permutation(len(categories))
    members = [order[category_of[order] == category] for category in range(category_of.max() + 1)]
    return np.sort(np.concatenate([indices[: max(1, int(len(indices) * fraction))] for indices in members]))


def _check_fractions(fractions: Sequence[float]) -> None:
    proper = len(fractions) == len(PARTS) and all(isfinite(f) and f >= 0 for f in fractions)
    if not (proper and fractions[0] > 0 and abs(sum(fractions) - 1) < 1e-6):  # decimal fractions do not add up exactly
        raise DataError(
            f"data.splits is {list(fractions)}; it must be three fractions, for train, val and test, "
            "that add up to 1, the first of them above 0"
        )


def _draw_shares(
    train_counts: Indices, num_clients: int, splitter: Splitter, rng: np.random.Generator
) -> tuple[NDArray[np.float64], Indices]:
    """Draw shares until all clients can train; return the shares as they came out in training, and the quotas there."""
    num_train = int(train_counts.sum())
    if not 1 <= num_clients <= num_train:
        raise DataError(
            f"federate.client_num is {num_clients} and there are {num_train} training examples; "
            "each client needs at least one. Take fewer clients or more data"
        )
    for _ in range(MAX_DRAWS):
        shares = splitter.shares(train_counts, num_clients, rng)
        quotas = _quotas(shares, train_counts, rng)
        idle = np.flatnonzero(quotas.sum(axis=0) == 0)
        if not len(idle):
            return np.where(train_counts[:, None] > 0, quotas / np.maximum(train_counts, 1)[:, None], shares), quotas
    raise DataError(
        f"data.splitter {splitter}: in each of {MAX_DRAWS} draws some of the {num_clients} clients, in the last one "
        f"client {idle[0]}, got none of the {num_train} training examples. Take fewer clients (federate.client_num), "
        "more data, with lda a larger alpha (data.splitter_args), or the splitter iid"
    )


def _quotas(shares: NDArray[np.float64], counts: Indices, rng: np.random.Generator) -> Indices:
    """Round shares (k, n) of counts (k,) to whole numbers (k, n) whose rows add up to the counts.

    Systematic rounding: one random offset per row, so every number is its share rounded up or down, right on average.
    """
    edges = np.cumsum(shares, axis=1)
    edges /= edges[:, -1:]  # exactly 1 at the end and wherever only zeros follow: a share of 0 stays 0
    whole = np.floor(edges * counts[:, None] + rng.random((len(counts), 1))).astype(np.int64)
    return np.diff(np.minimum(whole, counts[:, None]), axis=1, prepend=0)


def _deal(part: Indices, groups: Indices, quotas: Indices) -> tuple[Indices, ...]:
    """Give each client its quota (k, n) of every group's members, in the random order of `part`."""
    by_group = part[np.argsort(groups[part], kind="stable")]
    num_groups, num_clients = quotas.shape
    client_of = np.repeat(np.tile(np.arange(num_clients), num_groups), quotas.ravel())
    return tuple(np.sort(by_group[client_of == client]) for client in range(num_clients))


def _check_version(document: dict[str, object], where: str) -> None:
    found = (document["format"], document["version"])
    if found != (FORMAT, VERSION):
        raise DataError(f"{where}: format {found[0]!r} version {found[1]!r}; this program reads {FORMAT!r} {VERSION}")


def _indices_of(clients: list[dict[str, list[int]]], part: str) -> tuple[Indices, ...]:
    return tuple(np.array(client[part], dtype=np.int64) for client in clients)


def _check_complete(partition: Partition, where: str) -> None:
    held = np.concatenate([indices for clients in partition.parts.values() for indices in clients])
    known = np.isin(partition.category_of, np.arange(len(partition.categories)))
    if not (known.all() and np.array_equal(np.sort(held), np.arange(partition.num_examples))):
        raise DataError(
            f"{where}: damaged (an example is missing, in two places or of no category); restore it from a backup"
        )
