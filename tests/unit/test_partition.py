"""Divisions of the examples: properties of all of them, the shares of each splitter, and the saved form."""

import json
from collections.abc import Sequence
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from fedmezo.data.partition import PARTS, Partition, partition, split, subsample
from fedmezo.data.splitters import Iid, Lda, Meta, Splitter, make_splitter
from fedmezo.errors import DataError

THIRDS = (0.6, 0.2, 0.2)


def generator(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


def cyclic(num_examples: int, num_categories: int) -> list[str]:
    return [f"c{index % num_categories}" for index in range(num_examples)]


def table(divided: Partition, part: str) -> NDArray[np.int64]:
    """Counts (clients, categories), made without the methods under test."""
    counts = np.zeros((divided.num_clients, len(divided.categories)), dtype=np.int64)
    for client, indices in enumerate(divided.parts[part]):
        np.add.at(counts[client], divided.category_of[indices], 1)
    return counts


splits = st.tuples(st.integers(1, 100), st.integers(0, 100), st.integers(0, 100)).map(
    lambda weights: tuple(weight / sum(weights) for weight in weights)
)


@given(st.integers(3, 3000), splits, st.integers(0, 2**32))
def test_split_is_disjoint_complete_stable_and_of_the_asked_sizes(
    num_examples: int, fractions: Sequence[float], seed: int
) -> None:
    parts = split(num_examples, fractions, generator(seed))
    again = split(num_examples, fractions, generator(seed))
    assert np.array_equal(np.sort(np.concatenate(parts)), np.arange(num_examples))
    for part, same, fraction in zip(parts, again, fractions, strict=True):
        assert np.array_equal(part, same)
        assert (len(part) == 0) == (fraction == 0)
        # rounding moves each of a part's ends by half an example, the guarantee of one by two more at most
        assert abs(len(part) - fraction * num_examples) <= 3


def test_split_of_the_shipped_configs() -> None:
    sizes = [len(part) for part in split(7473, (0.998, 0.001, 0.001), generator())]
    assert sizes == [7458, 8, 7]  # ends at round(7458.05), round(7465.53)


splitters = st.sampled_from([Iid(), Lda(0.5), Lda(5.0), Meta()])


@settings(deadline=None)
@given(
    splitters,
    st.lists(st.sampled_from("abcdefg"), min_size=60, max_size=400),
    st.integers(1, 5),
    st.integers(0, 2**32),
)
def test_partition_is_disjoint_complete_and_stable(
    splitter: Splitter, categories: list[str], num_clients: int, seed: int
) -> None:
    try:
        divided = partition(categories, THIRDS, num_clients, splitter, generator(seed))
    except DataError as error:
        assert "got none of the" in str(error)  # noqa: PT017 - rare, and allowed, with few categories
        return
    held = [indices for part in PARTS for indices in divided.parts[part]]
    assert np.array_equal(np.sort(np.concatenate(held)), np.arange(len(categories)))
    assert all(np.array_equal(indices, np.sort(indices)) for indices in held)
    assert all(size > 0 for size in divided.sizes("train"))
    assert [divided.categories[code] for code in divided.category_of] == categories
    again = partition(categories, THIRDS, num_clients, splitter, generator(seed))
    assert again.to_json() == divided.to_json()


@settings(deadline=None)
@given(st.sampled_from([Lda(0.5), Lda(50.0), Meta()]), st.integers(1, 9), st.integers(1, 9), st.integers(0, 2**32))
def test_clients_keep_their_categories_and_proportions(
    splitter: Splitter, num_categories: int, num_clients: int, seed: int
) -> None:
    divided = partition(cyclic(1200, num_categories), THIRDS, num_clients, splitter, generator(seed))
    train = table(divided, "train")
    for part in ("val", "test"):
        counts = table(divided, part)
        assert not (counts[train == 0]).any()
        # the share of a category, as a number of examples rounded up or down
        expected = train / train.sum(axis=0) * counts.sum(axis=0)
        assert (np.abs(counts - expected) < 1).all()


@pytest.mark.parametrize("num_clients", [1, 3, 7, 300])
def test_iid_shares_are_equal_and_of_mixed_categories(num_clients: int) -> None:
    divided = partition(cyclic(4000, 4), (0.8, 0.1, 0.1), num_clients, Iid(), generator())
    for part in PARTS:
        assert max(divided.sizes(part)) - min(divided.sizes(part)) <= 1
    if num_clients <= 7:
        # a client holds 457 or more of 3200: each category 1/4 of them, to six standard deviations of a sample
        shares = table(divided, "train") / np.array(divided.sizes("train"))[:, None]
        assert np.abs(shares - 0.25).max() < 6 * np.sqrt(0.25 * 0.75 / 457)


def test_iid_rounding_favours_no_client() -> None:
    # 1 test example among 3 clients, 600 times: each gets 200, to five standard deviations of a binomial
    sizes = np.sum(
        [partition([""] * 10, (0.8, 0.1, 0.1), 3, Iid(), generator(s)).sizes("test") for s in range(600)], axis=0
    )
    assert np.abs(sizes - 200).max() < 5 * np.sqrt(600 * 1 / 3 * 2 / 3)


@pytest.mark.parametrize("alpha", [0.1, 0.5, 10.0])
@pytest.mark.parametrize("num_clients", [2, 3, 20])
def test_lda_shares_have_the_moments_of_the_dirichlet_distribution(alpha: float, num_clients: int) -> None:
    draws = 20_000
    shares = Lda(alpha).shares(np.ones(draws, dtype=np.int64), num_clients, generator())
    assert shares.sum(axis=1) == pytest.approx(np.ones(draws), abs=1e-12)  # rounding of float64
    mean = Fraction(1, num_clients)
    variance = float(mean * (1 - mean)) / (num_clients * alpha + 1)
    # five standard errors of the mean; of the variance, whose error is bounded by that of a variable in [0, 1]
    assert np.abs(shares.mean(axis=0) - float(mean)).max() < 5 * np.sqrt(variance / draws)
    assert np.abs(shares.var(axis=0) - variance).max() < 5 * np.sqrt(variance / draws)


def test_lda_counts_are_those_of_a_plain_dirichlet_deal() -> None:
    """The reference's rule, written out: category by category, cut its members where the summed shares say."""

    class Fixed(Lda):
        def shares(
            self, train_counts: NDArray[np.int64], num_clients: int, rng: np.random.Generator
        ) -> NDArray[np.float64]:
            return np.stack(
                [generator(category).dirichlet([0.5] * num_clients) for category in range(len(train_counts))]
            )

    divided = partition(cyclic(5000, 5), (1.0, 0.0, 0.0), 4, Fixed(), generator(1))
    for category in range(5):
        members = np.flatnonzero(divided.category_of == category)
        cuts = (np.cumsum(generator(category).dirichlet([0.5] * 4)) * len(members)).astype(int)[:-1]
        expected = [len(cut) for cut in np.split(members, cuts)]
        assert np.abs(table(divided, "train")[:, category] - expected).max() <= 1  # the reference rounds its cuts down


@pytest.mark.parametrize(("num_categories", "num_clients"), [(8, 3), (8, 8), (5, 1), (7, 6)])
def test_meta_deals_whole_categories(num_categories: int, num_clients: int) -> None:
    divided = partition(cyclic(800, num_categories), THIRDS, num_clients, Meta(), generator())
    holds = np.sum([table(divided, part) > 0 for part in PARTS], axis=0) > 0
    assert (holds.sum(axis=0) == 1).all()
    assert set(holds.sum(axis=1)) <= {num_categories // num_clients, -(-num_categories // num_clients)}


def test_meta_divides_categories_evenly_among_more_clients() -> None:
    # the six further clients go where a client would hold most: a 600 / (1 + 5), b 200 / (1 + 1), c 100
    categories = ["a"] * 600 + ["b"] * 200 + ["c"] * 100
    divided = partition(categories, (1.0, 0.0, 0.0), 9, Meta(), generator())
    assert sorted(divided.sizes("train")) == [100] * 9
    assert sorted((row.category, row.num_examples) for row in divided.rows()) == [("a", 100)] * 6 + [
        ("b", 100),
        ("b", 100),
        ("c", 100),
    ]


def test_different_generators_divide_differently() -> None:
    first, second = (partition(cyclic(500, 5), THIRDS, 3, Lda(), generator(seed)).to_json() for seed in (0, 1))
    assert first != second


def test_rows_count_everything_once() -> None:
    divided = partition(["a", "b", "a", "b", "a"], (0.6, 0.0, 0.4), 1, Meta(), generator())
    rows = {(row.client, row.part, row.category): row.num_examples for row in divided.rows()}
    assert sum(rows.values()) == 5
    assert {part for _, part, _ in rows} == {"train", "test"}
    for part in ("train", "test"):
        for column, category in enumerate("ab"):
            assert rows.get((0, part, category), 0) == table(divided, part)[0, column]


def test_json_gives_the_same_partition() -> None:
    divided = partition(cyclic(300, 3), THIRDS, 4, Lda(0.5), generator())
    text = divided.to_json()
    again = Partition.from_json(text)
    assert again.to_json() == text
    assert again.rows() == divided.rows()
    assert again.splitter == "lda(alpha=0.5)"
    assert (again.num_clients, again.num_examples) == (4, 300)
    assert "\n" not in text


def edited(**changes: object) -> str:
    document = json.loads(partition(cyclic(9, 3), THIRDS, 2, Iid(), generator()).to_json())
    return json.dumps(document | changes)


TWICE = [{"train": [0, 1, 2], "val": [0], "test": []}, {"train": [3, 4, 5, 6], "val": [7], "test": [8]}]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (edited(version=2), "p.json: format 'fedmezo-partition' version 2; this program reads 'fedmezo-partition' 1"),
        (edited(format="x"), "p.json: format 'x' version 1; this program reads 'fedmezo-partition' 1"),
        (edited(clients=TWICE), "p.json: damaged (an example is missing, in two places or of no category)"),
        (edited(category_of=[0] * 8 + [3]), "p.json: damaged (an example is missing, in two places or of no category)"),
        (edited(clients=[{"train": [0]}]), "p.json: damaged (KeyError: 'val')"),
        (edited(category_of=[10**30]), "p.json: damaged (OverflowError: Python int too large to convert to C long)"),
        ("[]", "p.json: damaged (TypeError: list indices must be integers or slices, not str)"),
        ("{", "p.json: damaged (JSONDecodeError: Expecting property name enclosed in double quotes"),
        pytest.param("[" * 100_000, "p.json: damaged (RecursionError: maximum recursion depth exceeded", id="deep"),
    ],
)
def test_damaged_json(text: str, message: str) -> None:
    with pytest.raises(DataError) as caught:
        Partition.from_json(text, where="p.json")
    assert str(caught.value).startswith(message)


def test_more_clients_than_training_examples() -> None:
    with pytest.raises(DataError) as caught:
        partition(cyclic(10, 2), THIRDS, 7, Iid(), generator())
    assert str(caught.value) == (
        "federate.client_num is 7 and there are 6 training examples; each client needs at least one. "
        "Take fewer clients or more data"
    )


@pytest.mark.parametrize("splitter", [Lda(1e-9), Lda(0.01)])
def test_lda_gives_up_after_a_bounded_number_of_draws(splitter: Lda) -> None:
    with pytest.raises(DataError) as caught:
        partition(cyclic(100, 2), THIRDS, 20, splitter, generator())
    message = str(caught.value)
    assert message.startswith(
        f"data.splitter {splitter}: in each of 100 draws some of the 20 clients, in the last one client "
    )
    assert message.endswith(
        ", got none of the 60 training examples. Take fewer clients (federate.client_num), more data, "
        "with lda a larger alpha (data.splitter_args), or the splitter iid"
    )


def test_lda_draws_again_until_every_client_can_train() -> None:
    # with 3 categories, 3 clients and this alpha a single draw leaves a client with nothing more often than not
    for seed in range(20):
        assert min(partition(cyclic(300, 3), THIRDS, 3, Lda(0.05), generator(seed)).sizes("train")) > 0


@pytest.mark.parametrize(
    "fractions", [(0.5, 0.5), (0.5, 0.1, 0.1), (0.0, 0.5, 0.5), (1.2, -0.1, -0.1), (float("nan"), 0, 1)]
)
def test_wrong_fractions(fractions: Sequence[float]) -> None:
    with pytest.raises(DataError) as caught:
        split(10, fractions, generator())
    assert str(caught.value) == (
        f"data.splits is {list(fractions)}; it must be three fractions, for train, val and test, "
        "that add up to 1, the first of them above 0"
    )


def test_too_few_examples_to_split() -> None:
    with pytest.raises(DataError, match=r"data\.splits asks for 3 parts of 2 examples: there are too few"):
        split(2, THIRDS, generator())


def test_subsample_takes_the_fraction_of_every_category() -> None:
    categories = ["a"] * 100 + ["b"] * 10 + ["c"]
    drawn = subsample(categories, 0.2, generator())
    assert [categories[index] for index in drawn] == ["a"] * 20 + ["b"] * 2 + ["c"]
    assert len(set(drawn.tolist())) == 23
    assert np.array_equal(subsample(categories, 1.0, generator()), np.arange(111))
    with pytest.raises(DataError, match=r"data\.subsample is 0; it must be above 0 and at most 1"):
        subsample(categories, 0, generator())


def test_splitters_by_name() -> None:
    assert [str(make_splitter(name, 0.3)) for name in ("iid", "lda", "meta")] == ["iid", "lda(alpha=0.3)", "meta"]
    with pytest.raises(DataError, match=r"data\.splitter 'LDA': there is no such splitter. Allowed: iid, lda, meta"):
        make_splitter("LDA")


@pytest.mark.parametrize("alpha", [0.0, -1.0, float("inf"), float("nan")])
def test_wrong_alpha(alpha: float) -> None:
    with pytest.raises(DataError, match=f"data.splitter_args: alpha is {alpha}; lda needs a finite number above 0"):
        make_splitter("lda", alpha)
