"""Words of a sweep to its points."""

from __future__ import annotations

import pytest

from fedmezo.campaign.grid import grid, short_label, split_values
from fedmezo.errors import ConfigError


@pytest.mark.parametrize(
    ("text", "values"),
    [
        ("1", ["1"]),
        ("1e-5,2e-5", ["1e-5", "2e-5"]),
        ("[.8,.1,.1]", ["[.8,.1,.1]"]),
        ("[.8,.1,.1],[.9,.05,.05]", ["[.8,.1,.1]", "[.9,.05,.05]"]),
        ("{a: 1, b: 2},{a: 2}", ["{a: 1, b: 2}", "{a: 2}"]),
        ("'a,b',c", ["'a,b'", "c"]),
        ("iid,", ["iid", ""]),
    ],
)
def test_values(text: str, values: list[str]) -> None:
    assert split_values(text) == values


def test_every_combination_in_order_of_the_words() -> None:
    fixed, points = grid(["a.x=1,2", "b=7", "c=u,v"])
    assert fixed == {"b": "7"}
    assert points == [
        {"a.x": "1", "c": "u"},
        {"a.x": "1", "c": "v"},
        {"a.x": "2", "c": "u"},
        {"a.x": "2", "c": "v"},
    ]
    assert grid(["b=7"]) == ({"b": "7"}, [{}])


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["lr"], "'lr' is not of the form key=a,b,c, such as train.optimizer.lr=1e-5,2e-5"),
        (["a=1,2", "a=3"], "a is given twice; give its values once, with commas between them"),
        (["a=1,1"], "'a=1,1' names a value twice"),
        (["seed=1,2"], "seed is no key to sweep over: --seeds N repeats every point with N seeds"),
    ],
)
def test_what_is_wrong(words: list[str], message: str) -> None:
    with pytest.raises(ConfigError) as error:
        grid(words)
    assert str(error.value) == message


def test_labels() -> None:
    assert short_label({"train.optimizer.lr": "1", "train.zo.eps": "2"}) == "lr=1, eps=2"
    assert short_label({"data.type": "a", "train.optimizer.type": "b"}) == "data.type=a, optimizer.type=b"
    assert short_label({}) == "as configured"
