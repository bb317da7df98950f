"""Prompts, label masks, truncation and the cache of tokens, with small tokenizers made here."""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast

from fedmezo.data import encode
from fedmezo.data.encode import EncodedDataset, encode_examples
from fedmezo.data.prompt import prompt_of
from fedmezo.data.text import Text
from fedmezo.errors import DataError, ModelError
from fedmezo.records import IGNORE_LABEL, Example

EXAMPLES = [
    Example("Name a fruit.", "", "Pear.", "naming"),
    Example("Add.", "1 and 2", "The sum is 3.\n", "sums"),
    Example("Grüße auf Japanisch?", "", "こんにちは 👋", "naming"),
    Example("Code.", "Go", "x()\n```", "code"),
    Example("Indent.", "", "\n\n  two", "code"),
]
LONG = 10_000

TEXTS = [prompt_of(example) + example.output for example in EXAMPLES]


def trained(tokenizer: Tokenizer) -> Tokenizer:
    trainer = trainers.BpeTrainer(
        vocab_size=400,
        special_tokens=["<s>", "</s>", "<pad>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(TEXTS, trainer)
    return tokenizer


def wrapped(tokenizer: Tokenizer, **tokens: str) -> PreTrainedTokenizerFast:
    return PreTrainedTokenizerFast(  # type: ignore[no-untyped-call]  # transformers leaves it unannotated
        tokenizer_object=tokenizer, **tokens
    )


def byte_level(template: str = "$A", **tokens: str) -> PreTrainedTokenizerFast:
    """Byte-level BPE as GPT-2 has it; `template` says which special tokens it adds by itself."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trained(tokenizer)
    tokenizer.post_processor = processors.Sequence(
        [
            processors.ByteLevel(trim_offsets=True),
            processors.TemplateProcessing(single=template, special_tokens=[("<s>", 0), ("</s>", 1)]),
        ]
    )
    return wrapped(tokenizer, **({"eos_token": "</s>", "pad_token": "<pad>"} | tokens))


def metaspace() -> PreTrainedTokenizerFast:
    """A tokenizer in the manner of LLaMA: spaces become ▁, one is put in front, and <s> is added."""
    tokenizer = Tokenizer(models.BPE(unk_token="<s>", fuse_unk=False))
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    trained(tokenizer)
    tokenizer.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.Fuse(), decoders.Strip(" ", 1, 0)])
    tokenizer.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 0)])
    return wrapped(tokenizer, bos_token="<s>", eos_token="</s>", pad_token="<pad>")


def words() -> PreTrainedTokenizerFast:
    """Whole words, everything unknown being one token; white space is lost."""
    vocabulary = {"<unk>": 0, "</s>": 1, "Pear": 2, ".": 3, ":": 4}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    return wrapped(tokenizer, eos_token="</s>", unk_token="<unk>")


def ids_of(dataset: EncodedDataset, index: int) -> list[int]:
    tokens: list[int] = dataset.tokens[dataset.offsets[index] : dataset.offsets[index + 1]].tolist()
    return tokens


def decoded(tokenizer: PreTrainedTokenizerFast, ids: list[int]) -> str:
    text = tokenizer.decode(ids, skip_special_tokens=False, clean_up_tokenization_spaces=False)
    assert isinstance(text, str)
    return text


def test_prompt_without_input() -> None:
    assert prompt_of(Example("Name {x}.", "", "Pear.", "")) == (
        "Below is an instruction that describes a task. Write a response that appropriately completes the request.\n"
        "\n### Instruction:\nName {x}.\n\n### Response:"
    )


def test_prompt_with_input() -> None:
    assert prompt_of(Example("Add.", "1 and 2", "3", "")) == (
        "Below is an instruction that describes a task, paired with an input that provides further context. "
        "Write a response that appropriately completes the request.\n"
        "\n### Instruction:\nAdd.\n\n### Input:\n1 and 2\n\n### Response:"
    )


@pytest.mark.parametrize(
    ("template", "start"), [("$A", ""), ("<s> $A", "<s>"), ("$A </s>", ""), ("<s> $A </s>", "<s>")]
)
def test_loss_covers_the_answer_and_one_end_token(template: str, start: str) -> None:
    tokenizer = byte_level(template, bos_token="<s>")
    dataset = encode_examples(EXAMPLES, tokenizer, LONG)
    assert len(dataset) == len(EXAMPLES)
    for index, example in enumerate(EXAMPLES):
        batch = dataset.batch([index])
        labels = batch.labels[0]
        assert decoded(tokenizer, labels[labels != IGNORE_LABEL].tolist()) == f"{example.output}</s>"
        assert decoded(tokenizer, batch.input_ids[0, labels == IGNORE_LABEL].tolist()) == start + prompt_of(example)


def test_answer_of_a_tokenizer_that_marks_spaces() -> None:
    tokenizer = metaspace()
    ascii_examples = EXAMPLES[:2]
    dataset = encode_examples(ascii_examples, tokenizer, LONG)
    for index, example in enumerate(ascii_examples):
        ids, boundary = ids_of(dataset, index), dataset.prompt_lengths[index]
        # no space is slipped in between prompt and answer
        assert ids == [*tokenizer(prompt_of(example) + example.output)["input_ids"], tokenizer.eos_token_id]
        # the reference's boundary: as many tokens as the prompt has alone
        assert ids[:boundary] == tokenizer(prompt_of(example))["input_ids"]


def test_token_across_the_boundary_is_an_answer_token() -> None:
    tokenizer = Tokenizer(
        models.BPE(vocab={":": 0, "`": 1, ":`": 2, "</s>": 3, "?": 4}, merges=[(":", "`")], unk_token="?")
    )
    merging = wrapped(tokenizer, eos_token="</s>", unk_token="?")
    dataset = encode_examples([Example("Code.", "", "``", "")], merging, LONG)
    assert ids_of(dataset, 0)[dataset.prompt_lengths[0] :] == [2, 1, 3]


def test_words_without_pad_token() -> None:
    dataset = encode_examples(EXAMPLES[:1] * 2, words(), LONG)
    assert ids_of(dataset, 0)[dataset.prompt_lengths[0] - 1 :] == [4, 2, 3, 1]
    assert dataset.pad_id == 1


def test_empty_answer_is_an_end_token() -> None:
    for template in ("$A", "$A </s>"):
        tokenizer = byte_level(template)
        dataset = encode_examples([Example("Say nothing.", "", "", "")], tokenizer, LONG)
        assert ids_of(dataset, 0)[dataset.prompt_lengths[0] :] == [tokenizer.eos_token_id]
        assert decoded(tokenizer, ids_of(dataset, 0)) == prompt_of(Example("Say nothing.", "", "", "")) + "</s>"


def test_truncation_cuts_the_end_and_drops_what_has_no_label() -> None:
    tokenizer = byte_level("<s> $A", bos_token="<s>")
    whole = encode_examples(EXAMPLES, tokenizer, LONG)
    tok_len = int(np.sort(whole.prompt_lengths)[2])  # the example with this prompt has no room for an answer
    cut = encode_examples(EXAMPLES, tokenizer, tok_len)
    assert cut.kept.tolist() == np.flatnonzero(whole.prompt_lengths < tok_len).tolist()
    assert len(cut) + cut.dropped == len(EXAMPLES)
    assert 0 < cut.dropped < len(EXAMPLES)
    for index, original in enumerate(cut.kept.tolist()):
        assert ids_of(cut, index) == ids_of(whole, original)[:tok_len]
        assert cut.prompt_lengths[index] == whole.prompt_lengths[original]
    assert (cut.batch(range(len(cut))).labels != IGNORE_LABEL).any(dim=1).all()


def test_nothing_kept() -> None:
    with pytest.raises(DataError) as caught:
        encode_examples(EXAMPLES, byte_level(), 3)
    assert str(caught.value) == "llm.tok_len is 3, which leaves no room for an answer in any of 5 examples; raise it"


def test_batch_pads_on_the_right() -> None:
    tokenizer = byte_level()
    dataset = encode_examples(EXAMPLES, tokenizer, LONG)
    order = np.array([3, 0, 3])
    batch = dataset.batch(order, torch.device("cpu"))
    assert {batch.input_ids.dtype, batch.attention_mask.dtype, batch.labels.dtype} == {torch.int64}
    assert (batch.num_examples, batch.length) == (3, max(dataset.lengths[order]))
    for row, index in enumerate(order.tolist()):
        ids, length = ids_of(dataset, index), dataset.lengths[index]
        padding, boundary = batch.length - length, dataset.prompt_lengths[index]
        assert batch.input_ids[row].tolist() == ids + [tokenizer.pad_token_id] * padding
        assert batch.attention_mask[row].tolist() == [1] * length + [0] * padding
        assert batch.labels[row].tolist() == [IGNORE_LABEL] * boundary + ids[boundary:] + [IGNORE_LABEL] * padding


def test_chunks_do_not_show(monkeypatch: pytest.MonkeyPatch) -> None:
    whole = encode_examples(EXAMPLES, byte_level(), LONG)
    monkeypatch.setattr(encode, "_CHUNK_TEXTS", 2)
    same_data(whole, encode_examples(EXAMPLES, byte_level(), LONG))


def same_data(first: EncodedDataset, second: EncodedDataset) -> None:
    for a, b in (
        (first.tokens, second.tokens),
        (first.offsets, second.offsets),
        (first.prompt_lengths, second.prompt_lengths),
        (first.kept, second.kept),
    ):
        assert a.dtype == b.dtype
        assert np.array_equal(a, b)
    assert (first.dropped, first.pad_id) == (second.dropped, second.pad_id)


@pytest.fixture
def tokenised(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The number of texts of each call to the tokenizer."""
    calls: list[int] = []
    original = encode._tokenise

    def counted(texts: Sequence[Text], tokenizer: PreTrainedTokenizerFast) -> Any:
        calls.append(len(texts))
        return original(texts, tokenizer)

    monkeypatch.setattr(encode, "_tokenise", counted)
    return calls


def test_cache_is_used(tmp_path: Path, tokenised: list[int]) -> None:
    first = encode_examples(EXAMPLES, byte_level(), 60, tmp_path / "new")
    truncating = byte_level()  # what a tokenizer was used for before changes neither result nor name
    truncating("a b c", truncation=True, max_length=2, padding="max_length")
    second = encode_examples(EXAMPLES, truncating, 60, tmp_path / "new")
    assert tokenised == [5]
    same_data(first, second)
    assert [path.suffix for path in (tmp_path / "new").iterdir()] == [".npz"]


def test_cache_is_missed_when_anything_changes(
    tmp_path: Path, tokenised: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    encode_examples(EXAMPLES, byte_level(), LONG, tmp_path)
    encode_examples(EXAMPLES[::-1], byte_level(), LONG, tmp_path)
    encode_examples(EXAMPLES, byte_level("<s> $A"), LONG, tmp_path)
    encode_examples(EXAMPLES, byte_level(eos_token="<pad>"), LONG, tmp_path)
    encode_examples(EXAMPLES, byte_level(), LONG - 1, tmp_path)
    monkeypatch.setattr(encode, "FORMAT_VERSION", -1)
    encode_examples(EXAMPLES, byte_level(), LONG, tmp_path)
    assert tokenised == [5] * 6
    assert len(list(tmp_path.iterdir())) == 6


@pytest.mark.parametrize("damage", ["empty", "cut", "flipped", "text", "other arrays", "inconsistent"])
def test_damaged_cache_is_made_anew(tmp_path: Path, tokenised: list[int], damage: str) -> None:
    first = encode_examples(EXAMPLES, byte_level(), LONG, tmp_path)
    (path,) = tmp_path.iterdir()
    content = path.read_bytes()
    if damage == "other arrays":
        np.savez(path, tokens=first.tokens)
    elif damage == "inconsistent":
        np.savez(
            path, tokens=first.tokens[:-1], offsets=first.offsets, prompt_lengths=first.prompt_lengths, kept=first.kept
        )
    else:
        middle = content.index(first.tokens.tobytes()) + 8
        flipped = content[:middle] + bytes([content[middle] ^ 1]) + content[middle + 1 :]
        path.write_bytes({"empty": b"", "cut": content[:-100], "flipped": flipped, "text": b"PK"}[damage])
    same_data(first, encode_examples(EXAMPLES, byte_level(), LONG, tmp_path))
    assert tokenised == [5, 5]
    assert path.read_bytes() == content


def test_the_cache_is_for_its_owner_and_for_a_month(tmp_path: Path) -> None:
    folder = tmp_path / "cache"
    folder.mkdir(mode=0o755)
    expired, other = folder / "tokens-0.npz", folder / "note.txt"
    for path in (expired, other):
        path.touch()
        os.utime(path, (0, 0))
    encode_examples(EXAMPLES, byte_level(), 60, folder)
    [kept] = folder.glob("*.npz")
    assert kept != expired
    assert other.exists()
    assert (kept.stat().st_mode & 0o777, folder.stat().st_mode & 0o777) == (0o600, 0o700)
    kept.chmod(0o644)  # as earlier versions wrote it
    os.utime(kept, (0, 0))
    encode_examples(EXAMPLES, byte_level(), 60, folder)
    assert kept.stat().st_mode & 0o777 == 0o600
    assert kept.stat().st_mtime > 0  # it was used


def test_cache_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(DataError, match=r"cannot write the cache of tokens .*/file/tokens-[0-9a-f]{32}.npz: "):
        encode_examples(EXAMPLES, byte_level(), LONG, tmp_path / "file")


def test_tokenizer_without_end_token() -> None:
    tokenizer = wrapped(words().backend_tokenizer)
    dataset, ended = (encode_examples(EXAMPLES[:1], one, LONG) for one in (tokenizer, words()))
    assert ids_of(dataset, 0) == ids_of(ended, 0)[:-1]
    assert dataset.prompt_lengths[0] == ended.prompt_lengths[0]


def test_slow_tokenizer(monkeypatch: pytest.MonkeyPatch) -> None:
    tokenizer = words()
    monkeypatch.setattr(type(tokenizer), "is_fast", False)
    with pytest.raises(ModelError, match=r"is not a fast one; the model's folder needs a tokenizer\.json"):
        encode_examples(EXAMPLES, tokenizer, LONG)
