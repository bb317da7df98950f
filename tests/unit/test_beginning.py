"""A text is cut before it is tokenised, and its first tokens are those of the whole: for every kind of tokenizer."""

from __future__ import annotations

import random
from collections.abc import Callable
from functools import cache
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast

from fedmezo.data.beginning import Beginnings

SIZES = st.integers(1, 12)
LETTERS = "ab"
CORPUS = [
    " ".join(random.Random(seed).choices(["ab", "ba", "aab", "bbb", "1", "12", "345"], k=40)) for seed in range(5)
]


def random_merges(rng: random.Random, alphabet: str, count: int) -> tuple[dict[str, int], list[tuple[str, str]]]:
    """Rules in an order that training could have found: each joins what is there already."""
    pieces, rules = list(alphabet), []
    for _ in range(count):
        rule = (rng.choice(pieces), rng.choice(pieces))
        if "".join(rule) not in pieces:
            rules.append(rule)
            pieces.append("".join(rule))
    return {piece: i for i, piece in enumerate(["?", *pieces])}, rules


def bpe(seed: int) -> Tokenizer:
    """Random rules over two letters, without words: whatever stands next to each other may be joined."""
    vocabulary, rules = random_merges(random.Random(seed), LETTERS, 8)
    return Tokenizer(models.BPE(vocab=vocabulary, merges=rules, unk_token="?", fuse_unk=seed % 2 == 0))


def sentencepiece(seed: int) -> Tokenizer:
    made = bpe(seed)
    vocabulary, rules = random_merges(random.Random(seed), LETTERS + "▁", 10)
    made.model = models.BPE(vocab=vocabulary, merges=rules, unk_token="?", byte_fallback=True)
    made.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    return made


def byte_level(seed: int) -> Tokenizer:
    made = Tokenizer(models.BPE())
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(vocab_size=280 + seed % 30, initial_alphabet=pre_tokenizers.ByteLevel.alphabet())
    made.train_from_iterator(CORPUS, trainer)
    return made


def digits_from_the_right(seed: int) -> Tokenizer:
    """Groups of three digits, counted from the end of the number, which may be far away."""
    made = byte_level(seed)
    grouped = pre_tokenizers.Split(Regex(r"\d{1,3}(?=(?:\d{3})*(?!\d))|[^\d]+"), "isolated")
    made.pre_tokenizer = pre_tokenizers.Sequence([grouped, pre_tokenizers.ByteLevel(False, use_regex=False)])
    return made


def unigram(seed: int) -> Tokenizer:
    """Likely divisions, among which ties and parities: `aa` is likely, `a` is not."""
    rng = random.Random(seed)
    pieces = [("?", -9.0), ("a", -5.0), ("b", -5.0), ("aa", -1.0), ("bb", -1.0), ("▁", -2.0)]
    pieces += [(rng.choice(["ab", "ba", "aab", "bba"]), -rng.choice([1.0, 2.0]))]
    made = Tokenizer(models.Unigram(pieces, unk_id=0))
    if seed % 2:
        made.pre_tokenizer = pre_tokenizers.Metaspace()
    return made


def word_level(seed: int) -> Tokenizer:
    made = Tokenizer(models.WordLevel({"?": 0, "ab": 1, "aab": 2, "a": 3}, unk_token="?"))
    made.pre_tokenizer = pre_tokenizers.WhitespaceSplit() if seed % 2 else pre_tokenizers.Whitespace()
    return made


def word_piece(seed: int) -> Tokenizer:
    """A word that is too long is one unknown token."""
    vocabulary = {"?": 0, "a": 1, "b": 2, "##a": 3, "##b": 4, "##ab": 5}
    made = Tokenizer(models.WordPiece(vocabulary, unk_token="?", max_input_chars_per_word=5 + seed % 5))
    made.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    return made


def greedy_token(seed: int) -> Tokenizer:
    """A special token that takes all white space before it, and letters that are rewritten."""
    made = byte_level(seed)
    made.add_special_tokens([AddedToken("<m>", lstrip=True, rstrip=seed % 2 == 0)])
    made.normalizer = normalizers.NFKC() if seed % 3 else normalizers.Strip()
    made.post_processor = processors.TemplateProcessing("<m> $A", special_tokens=[("<m>", made.token_to_id("<m>"))])
    return made


KINDS: list[Callable[[int], Tokenizer]] = [
    bpe, sentencepiece, byte_level, digits_from_the_right, unigram, word_level, word_piece, greedy_token,
]  # fmt: skip
# Long enough that a cut is within reach of whatever such small tokenizers look at.
RUNS = st.sampled_from(["a", "b", "ab", "aab", "1", "123", " ", "  ", "\n", "<m>", "é", "\u0301", "!", "▁", "c"])
TEXTS = st.lists(st.tuples(RUNS, st.integers(1, 90)), min_size=1, max_size=8).map(
    lambda runs: "".join(piece * times for piece, times in runs)
)


@cache
def made_of(kind: Callable[[int], Tokenizer], seed: int) -> tuple[Tokenizer, PreTrainedTokenizerFast]:
    of: Any = PreTrainedTokenizerFast  # has no annotations
    made = kind(seed)
    return made, of(tokenizer_object=made)


def fast(made: Tokenizer) -> PreTrainedTokenizerFast:
    of: Any = PreTrainedTokenizerFast
    tokenizer: PreTrainedTokenizerFast = of(tokenizer_object=made)
    return tokenizer


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.__name__)
@given(seed=st.integers(0, 11), count=SIZES, text=TEXTS)
@settings(max_examples=60)
def test_the_first_tokens_are_those_of_the_whole(
    kind: Callable[[int], Tokenizer], seed: int, count: int, text: str
) -> None:
    made, tokenizer = made_of(kind, seed)
    whole, cut = (made.encode(part) for part in (text, Beginnings(tokenizer, count, first_try=4).of(text)))
    assert cut.ids[:count] == whole.ids[:count]
    if len(whole.ids) > count:
        assert cut.offsets[:count] == whole.offsets[:count]


@pytest.mark.parametrize("kind", [bpe, sentencepiece, byte_level, greedy_token], ids=lambda kind: kind.__name__)
def test_one_endless_word_is_cut_where_there_is_a_bound(kind: Callable[[int], Tokenizer]) -> None:
    assert len(Beginnings(fast(kind(1)), 8, first_try=32).of("ab" * 4000)) < 3000


@pytest.mark.parametrize("kind", KINDS[1:], ids=lambda kind: kind.__name__)
def test_words_are_cut_by_every_kind_that_has_them(kind: Callable[[int], Tokenizer]) -> None:
    assert len(Beginnings(fast(kind(1)), 8, first_try=32).of("ab aab 12 " * 400)) < 300


def test_what_has_no_bound_is_left_whole() -> None:
    """The first token of `a...a` is `a` or `aa`, as the number of letters is odd or even; of digits, `1` to `111`."""
    letters, digits = "a" * 301, "1" * 300
    assert Beginnings(fast(unigram(0)), 4, first_try=32).of(letters) == letters
    assert Beginnings(fast(digits_from_the_right(0)), 4, first_try=32).of(digits) == digits
    out_of_order = Tokenizer(models.BPE({"a": 0, "aa": 1, "aaa": 2}, [("aa", "a"), ("a", "a")]))
    assert Beginnings(fast(out_of_order), 4, first_try=32).of(letters) == letters


def test_a_short_text_is_left_as_it_is() -> None:
    text = "ab " * 100
    assert Beginnings(fast(byte_level(0)), 4).of(text) is text


@pytest.mark.parametrize(("kind", "piece"), [(unigram, "a"), (byte_level, " ")])
def test_an_endless_run_is_cut_at_last(kind: Callable[[int], Tokenizer], piece: str) -> None:
    assert len(Beginnings(fast(kind(0)), 128).of(piece * 1_000_000)) == 1 << 16


def test_a_run_that_makes_no_tokens_is_left_whole() -> None:
    text = " " * 1_000_000 + "ab"
    assert Beginnings(fast(word_level(1)), 128).of(text) == text
