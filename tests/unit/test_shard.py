"""The order of a client's data: complete, without repetition, and a pure function of (seed, client, round)."""

from collections import Counter

import numpy as np
import torch
from hypothesis import given
from hypothesis import strategies as st

from fedmezo.data.encode import EncodedDataset
from fedmezo.data.shard import Schedule, Shard, visiting_order

LENGTHS = np.random.default_rng(0).integers(2, 30, size=40)


def dataset() -> EncodedDataset:
    """Example i is LENGTHS[i] tokens i; all but the first are labels."""
    offsets = np.concatenate([[0], np.cumsum(LENGTHS)]).astype(np.int64)
    tokens = np.repeat(np.arange(40), LENGTHS).astype(np.int32)
    ones = np.ones(40, dtype=np.int32)
    return EncodedDataset(tokens, offsets, ones, np.arange(40), dropped=0, pad_id=99)


def shard(schedule: Schedule, client: int = 0, indices: range = range(5, 23)) -> Shard:
    return Shard(dataset(), np.array(indices), 3, client, schedule, torch.device("cpu"))


def visited(held: Shard, round_index: int = 0) -> list[list[int]]:
    return [batch.input_ids[:, 0].tolist() for batch in held.batches(round_index)]


@given(st.integers(1, 7), st.integers(1, 3))
def test_a_pass_visits_every_example_once(batch_size: int, passes: int) -> None:
    held = shard(Schedule(batch_size, passes=passes))
    counted = Counter(example for batch in visited(held) for example in batch)
    assert counted == dict.fromkeys(range(5, 23), passes)
    assert len(visited(held)) == held.num_batches == passes * -(-18 // batch_size)


@given(st.integers(1, 50), st.integers(1, 4))
def test_a_number_of_batches_repeats_an_example_only_when_all_were_seen(batches: int, batch_size: int) -> None:
    held = shard(Schedule(batch_size, batches=batches))
    counted = Counter(example for batch in visited(held) for example in batch)
    assert len(visited(held)) == held.num_batches == batches
    assert max(counted.values()) <= -(-batches // (-(-18 // batch_size)))


def test_the_order_is_of_its_round_and_client_alone() -> None:
    held = shard(Schedule(1, batches=10))
    assert visited(held, 4) == visited(held, 4)
    assert visited(held, 4) != visited(held, 5)
    assert visited(held, 4) != visited(shard(Schedule(1, batches=10), client=1), 4)


def test_clients_visit_the_ranks_of_their_lengths_in_one_common_order() -> None:
    ranks = []
    for client, indices in enumerate((range(0, 20), range(20, 40))):
        lengths = [batch.length for batch in shard(Schedule(1, batches=12), client, indices).batches(7)]
        ranks.append(torch.tensor(lengths).argsort(stable=True).argsort())
    both = [(a, b) for a, b in zip(*(r.tolist() for r in ranks), strict=True)]
    # equal lengths may swap neighbouring ranks; apart from that the ranks meet
    assert sum(abs(a - b) <= 2 for a, b in both) == 12
    assert ranks[0].tolist() != list(range(12))


def test_a_client_with_fewer_batches_keeps_the_relative_order() -> None:
    long, short = visiting_order(1, 2, list(range(20))), visiting_order(1, 2, list(range(8)))
    assert [rank for rank in long if rank < 8] == short
