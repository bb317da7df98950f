"""Directions are Philox, are what their distribution promises, and can be generated in any pieces."""

import hashlib
import math
from collections.abc import Iterator

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from fedmezo.zo import noise
from fedmezo.zo.noise import (
    MAX_ROUNDS,
    MAX_STEPS,
    SERVER,
    Noise,
    Purpose,
    Stream,
    compiles,
    noise_for,
    permutation,
    philox,
    uniform,
    words,
)
from tests.compilers import needs_compiler, without_compiler

STREAM = Stream(seed=2024, purpose=Purpose.DIRECTION, round=3, client=1, step=7, query=2)


def philox_of(counter: tuple[int, ...], key: tuple[int, int]) -> list[int]:
    c0, c1, c2, c3 = (torch.tensor([word]) for word in counter)
    k0, k1 = (torch.tensor([word]) for word in key)
    return [int(word) for word in philox((c0, c1, c2, c3), (k0, k1))]


def philox_reference(counter: tuple[int, ...], key: tuple[int, int]) -> list[int]:
    """The paper's definition in Python integers, which do not overflow."""
    c0, c1, c2, c3 = counter
    k0, k1 = key
    for _ in range(10):
        p0, p1 = 0xD2511F53 * c0, 0xCD9E8D57 * c2
        c0, c1, c2, c3 = (p1 >> 32) ^ c1 ^ k0, p1 & 0xFFFFFFFF, (p0 >> 32) ^ c3 ^ k1, p0 & 0xFFFFFFFF
        k0, k1 = (k0 + 0x9E3779B9) & 0xFFFFFFFF, (k1 + 0xBB67AE85) & 0xFFFFFFFF
    return [c0, c1, c2, c3]


@pytest.mark.parametrize(
    ("counter", "key", "answer"),
    [
        ((0, 0, 0, 0), (0, 0), [0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8]),
        ((0xFFFFFFFF,) * 4, (0xFFFFFFFF,) * 2, [0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD]),
    ],
)
def test_philox_known_answers_of_random123(counter: tuple[int, ...], key: tuple[int, int], answer: list[int]) -> None:
    assert philox_of(counter, key) == answer


word = st.integers(0, 0xFFFFFFFF)


@given(st.tuples(word, word, word, word), st.tuples(word, word))
def test_philox_agrees_with_unbounded_integers(counter: tuple[int, ...], key: tuple[int, int]) -> None:
    assert philox_of(counter, key) == philox_reference(counter, key)


def test_a_stream_is_the_counter_the_design_lays_down() -> None:
    stream = Stream(seed=0x1122334455667788, purpose=Purpose.DATA_ORDER, round=5, client=9, step=6, query=3)
    first = philox_reference((0, 6 | 3 << 24, 9, 5 | 2 << 28), (0x55667788, 0x11223344))
    second = philox_reference((1, 6 | 3 << 24, 9, 5 | 2 << 28), (0x55667788, 0x11223344))
    assert words(stream, 0, 8).tolist() == first + second
    assert words(stream, 3, 6).tolist() == [first[3], *second[:2]]


def gaussian_by_hand(count: int) -> list[float]:
    table = torch.special.ndtri((torch.arange(65536, dtype=torch.float64) + 0.5) / 65536).to(torch.bfloat16)
    halves = [half for w in words(STREAM, 0, -(-count // 2)).tolist() for half in (w & 0xFFFF, w >> 16)]
    return [float(table[half]) for half in halves[:count]]


def signs_by_hand(count: int) -> list[float]:
    bits = [w >> i & 1 for w in words(STREAM, 0, -(-count // 32)).tolist() for i in range(32)]
    return [1.0 - 2.0 * bit for bit in bits[:count]]


def test_elements_come_low_half_first_and_low_bit_first() -> None:
    assert Noise("gaussian").directions([STREAM], 0, 50)[0].tolist() == gaussian_by_hand(50)
    assert Noise("rademacher").directions([STREAM], 0, 300)[0].tolist() == signs_by_hand(300)


def test_the_quantile_table_is_pinned_and_the_same_from_float32() -> None:
    table = noise._quantiles(torch.device("cpu"))
    digest = hashlib.sha256(table.view(torch.int16).numpy().astype("<i2").tobytes()).hexdigest()
    assert digest.startswith("33888ab6f4616c9a")
    from_float32 = torch.special.ndtri((torch.arange(65536, dtype=torch.float32) + 0.5) / 65536)
    assert torch.equal(from_float32.to(torch.bfloat16), table)


@pytest.mark.parametrize("kind", ["gaussian", "rademacher"])
@settings(max_examples=30, deadline=None)
@given(data=st.data())
def test_any_range_and_any_company_give_the_bits_of_the_whole(kind: str, data: st.DataObject) -> None:
    start = data.draw(st.integers(0, 3000))
    stop = data.draw(st.integers(start, 3000))
    others = [Stream(2024, Purpose.DIRECTION, client=c) for c in range(data.draw(st.integers(0, 3)))]
    whole = Noise(kind).directions([STREAM], 0, 3000)[0]
    assert torch.equal(Noise(kind).directions([*others, STREAM], start, stop)[-1], whole[start:stop])


@pytest.mark.parametrize("kind", ["gaussian", "rademacher"])
def test_chunks_of_generation_do_not_show(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = Noise(kind).directions([STREAM], 5, 5000)
    monkeypatch.setattr(noise, "chunk_of", lambda device, compiled: 384)
    assert torch.equal(Noise(kind).directions([STREAM], 5, 5000), whole)


@needs_compiler
@pytest.mark.parametrize("kind", ["gaussian", "rademacher"])
def test_the_compiled_generator_gives_the_bits_of_the_eager_one(kind: str) -> None:
    assert compiles(kind, torch.device("cpu"))
    streams = [Stream(2**64 - 1, Purpose.DIRECTION, MAX_ROUNDS - 1, SERVER - i, MAX_STEPS - 1, 255) for i in range(5)]
    for some, start, stop in ((streams, 0, 70_000), (streams[:1], 3, 4), (streams[:2], 2**31 - 5, 2**31 + 300_000)):
        compiled = Noise(kind, compiled=True).directions(some, start, stop)
        assert torch.equal(compiled, Noise(kind).directions(some, start, stop))


@pytest.fixture
def no_compiler() -> Iterator[None]:
    def forget() -> None:
        compiles.cache_clear()
        noise._compiled.cache_clear()

    forget()
    with without_compiler():
        yield
    forget()


@pytest.mark.usefixtures("no_compiler")
def test_without_a_compiler_the_eager_generator_is_used() -> None:
    assert not compiles("gaussian", torch.device("cpu"))
    assert noise_for("gaussian", 1 << 40, torch.device("cpu")) == Noise("gaussian")


def kolmogorov_distance(sample: Tensor) -> float:
    ordered = sample.double().sort().values
    n = len(ordered)
    cdf = 0.5 * (1 + torch.erf(ordered / math.sqrt(2)))
    above = (torch.arange(1, n + 1) / n - cdf).abs().max()
    below = (cdf - torch.arange(n) / n).abs().max()
    return float(torch.maximum(above, below))


def test_gaussian_moments_and_distribution() -> None:
    n = 1 << 20
    z = Noise("gaussian").directions([STREAM], 0, n)[0].double()
    # five standard errors of each statistic of n normal draws
    assert abs(z.mean()) < 5 / math.sqrt(n)
    assert abs(z.var() - 0.99999) < 5 * math.sqrt(2 / n)
    assert abs((z**4).mean() - 3.0) < 5 * math.sqrt(96 / n)
    assert z.abs().max() <= 4.3125
    # a ninth of bfloat16's spacing near 1 (2^-8) at most is the rounding's share; 1.95/sqrt(n) is the 0.1 % point
    assert kolmogorov_distance(z) < 1.95 / math.sqrt(n) + 2**-8 * 0.4


def test_rademacher_is_balanced_and_of_unit_size() -> None:
    z = Noise("rademacher").directions([STREAM], 0, 1 << 20)[0].double()
    assert set(z.tolist()) == {-1.0, 1.0}
    assert abs(z.mean()) < 5 / 1024


def test_streams_that_differ_in_one_word_are_independent() -> None:
    base = dict(seed=1, purpose=Purpose.DIRECTION, round=1, client=1, step=1, query=1)
    variants = [Stream(**base)] + [Stream(**{**base, name: 2}) for name in ("seed", "round", "client", "step", "query")]  # type: ignore[arg-type]  # one dict, mixed types
    variants.append(Stream(**{**base, "purpose": Purpose.ADAPTER}))  # type: ignore[arg-type]  # as above
    z = torch.cat([Noise("gaussian").directions([stream], 0, 1 << 14) for stream in variants]).double()
    correlation = torch.corrcoef(z) - torch.eye(len(variants))
    assert correlation.abs().max() < 5 / math.sqrt(1 << 14)


def test_permutation_is_one_and_uniform_lies_inside() -> None:
    order = permutation(Stream(3, Purpose.DATA_ORDER), 1000)
    assert sorted(order.tolist()) == list(range(1000))
    assert order.tolist() != list(range(1000))
    draws = [uniform(Stream(3, Purpose.RATE, round=r)) for r in range(400)]
    assert all(0 < u < 1 for u in draws)
    assert abs(sum(draws) / 400 - 0.5) < 5 / math.sqrt(12 * 400)


@pytest.mark.parametrize(
    "words_",
    [{"seed": 1 << 64}, {"round": 1 << 28}, {"client": 1 << 32}, {"step": 1 << 24}, {"query": 256}, {"step": -1}],
)
def test_a_word_that_does_not_fit_its_bits_is_refused(words_: dict[str, int]) -> None:
    with pytest.raises(ValueError, match="out of range"):
        Stream(**{"seed": 0, "purpose": Purpose.DIRECTION, **words_})  # type: ignore[arg-type]  # one dict, mixed types


def test_unknown_noise_and_mixed_seeds_are_refused() -> None:
    with pytest.raises(ValueError, match="'gaussian' or 'rademacher'"):
        Noise("cauchy")
    with pytest.raises(ValueError, match="different seeds"):
        Noise("gaussian").directions([STREAM, Stream(1, Purpose.DIRECTION)], 0, 4)
