"""Train the bundled base model: `python -m scripts.train_base` (about a quarter of an hour on one CPU core).

Writes a byte-level BPE tokenizer and a LLaMA of about a million parameters, trained from random values on the closed
world of `make_instructions.py` less the bundled set. Some prompts ask for a sentence or for a short answer; the others
are answered in the short form four times in five, so greedy decoding answers in the short form and the sentences of
the bundled set are known but rarer. That is the shift that federated tuning teaches.
"""

from __future__ import annotations

import argparse
import math
import os
import random
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from scripts.make_instructions import Item, worlds

SEED = 2402
CUE_SHARE = 0.25  # of each cue: they teach the model that an answer's form is one thing, common to all categories
SENTENCE_SHARE = 0.2  # of the answers without a cue
HARDER = {"arithmetic": 4, "comparing": 2, "ordering": 2, "sequences": 3}  # how often, against once for the others
VOCABULARY = 1024
PROMPT_WEIGHT = 0.1  # of a prompt token's loss against an answer token's: most of the prompt is free choice
OUT = Path(__file__).parents[1] / "src" / "fedmezo" / "bundled" / "base"

PAD, BOS, EOS = "<pad>", "<s>", "</s>"
HEAD = (
    "Below is an instruction that describes a task. "
    "Write a response that appropriately completes the request.\n\n### Instruction:\n"
)
HEAD_WITH_INPUT = (
    "Below is an instruction that describes a task, paired with an input that provides further context. "
    "Write a response that appropriately completes the request.\n\n### Instruction:\n"
)
INPUT, RESPONSE = "\n\n### Input:\n", "\n\n### Response:"
NEUTRAL, SENTENCE_CUE, SHORT_CUE = "Write a response", "Write a full sentence", "Write a short answer"
TEMPLATE_PIECES = (
    *(head.replace(NEUTRAL, cue) for head in (HEAD, HEAD_WITH_INPUT) for cue in (NEUTRAL, SENTENCE_CUE, SHORT_CUE)),
    INPUT,
    RESPONSE,
)  # one token each: a prompt costs no more than its content


def prompt(item: Item, cue: str = NEUTRAL) -> str:
    """The Alpaca template around an item; a cue other than the neutral one asks for a form of answer."""
    if item.input:
        return HEAD_WITH_INPUT.replace(NEUTRAL, cue) + item.instruction + INPUT + item.input + RESPONSE
    return HEAD.replace(NEUTRAL, cue) + item.instruction + RESPONSE


def draw(item: Item, generator: random.Random) -> tuple[str, str]:
    """Prompt and answer of an item: with a cue, the form that it asks for; without one, either form at random."""
    weights = (1 - 2 * CUE_SHARE, CUE_SHARE, CUE_SHARE)
    cue = generator.choices((NEUTRAL, SENTENCE_CUE, SHORT_CUE), weights)[0]
    in_sentence = cue == SENTENCE_CUE or (cue == NEUTRAL and generator.random() < SENTENCE_SHARE)
    return prompt(item, cue), item.sentence if in_sentence else item.short


def draws(rest: dict[str, list[Item]], generator: random.Random) -> Iterator[tuple[str, str]]:
    """Endless (prompt, answer) pairs, the harder categories more often."""
    weights = [HARDER.get(category, 1) for category in rest]
    while True:
        items = generator.choices(list(rest.values()), weights)[0]
        yield draw(generator.choice(items), generator)


def build_tokenizer(texts: list[str]) -> PreTrainedTokenizerFast:
    """A byte-level BPE of `VOCABULARY` tokens that prepends bos."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY - len(TEMPLATE_PIECES),
        special_tokens=[PAD, BOS, EOS],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    tokenizer.add_tokens([AddedToken(piece, special=False, normalized=False) for piece in TEMPLATE_PIECES])
    bos = (BOS, tokenizer.token_to_id(BOS))
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{BOS} $A", pair=f"{BOS} $A {BOS} $B", special_tokens=[bos]
    )
    return PreTrainedTokenizerFast(  # type: ignore[no-untyped-call]  # transformers leaves it unannotated
        tokenizer_object=tokenizer, pad_token=PAD, bos_token=BOS, eos_token=EOS, model_max_length=2048
    )


def build_model(tokenizer: PreTrainedTokenizerFast) -> LlamaForCausalLM:
    """The LLaMA with random initial values."""
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=128,
        intermediate_size=344,
        num_hidden_layers=4,
        num_attention_heads=4,
        max_position_embeddings=2048,
        tie_word_embeddings=True,
        pad_token_id=tokenizer.pad_token_id,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(SEED)
        return LlamaForCausalLM(config)


@dataclass(frozen=True, slots=True)
class Encoded:
    """Token ids of one text, and how many of them at its end are the answer with its eos."""

    ids: list[int]
    answer_length: int


def encode(pairs: list[tuple[str, str]], tokenizer: PreTrainedTokenizerFast) -> list[Encoded]:
    """Encode (prompt, answer) pairs."""
    prompts = tokenizer([text for text, _ in pairs])["input_ids"]
    answers = tokenizer([text for _, text in pairs], add_special_tokens=False)["input_ids"]
    eos = tokenizer.eos_token_id
    return [Encoded([*head, *tail, eos], len(tail) + 1) for head, tail in zip(prompts, answers, strict=True)]


def collate(examples: list[Encoded]) -> tuple[Tensor, Tensor, Tensor]:
    """Ids, answer mask and prompt mask, each (b, t), of right-padded examples."""
    length = max(len(example.ids) for example in examples)
    ids = torch.zeros(len(examples), length, dtype=torch.long)
    answer, given = torch.zeros(len(examples), length), torch.zeros(len(examples), length)
    for row, example in enumerate(examples):
        end, start = len(example.ids), len(example.ids) - example.answer_length
        ids[row, :end] = torch.tensor(example.ids)
        answer[row, start:end] = 1
        given[row, 1:start] = 1
    return ids, answer, given


def mean_losses(model: LlamaForCausalLM, examples: list[Encoded]) -> tuple[Tensor, Tensor]:
    """Mean loss of the answer tokens and of the prompt tokens, two scalars."""
    ids, answer, given = collate(examples)
    logits = model(input_ids=ids).logits[:, :-1]  # causal, so right padding needs no mask
    losses = F.cross_entropy(logits.flatten(0, 1), ids[:, 1:].flatten(), reduction="none").view(len(ids), -1)
    answer, given = answer[:, 1:], given[:, 1:]
    return (losses * answer).sum() / answer.sum(), (losses * given).sum() / given.sum()


def bucketed(examples: list[Encoded], size: int, generator: random.Random) -> list[list[Encoded]]:
    """Batches of similar lengths in a random order."""
    ordered = sorted(examples, key=lambda example: len(example.ids))
    batches = [ordered[i : i + size] for i in range(0, len(ordered), size)]
    generator.shuffle(batches)
    return batches


def rate(step: int, steps: int, peak: float) -> float:
    """Linear warm-up over 100 steps, then a cosine to a hundredth of the peak."""
    if step < 100:
        return peak * (step + 1) / 100
    return peak * (0.01 + 0.99 * (1 + math.cos(math.pi * (step - 100) / (steps - 100))) / 2)


def train_(
    model: LlamaForCausalLM, stream: Iterator[list[Encoded]], steps: int, peak: float = 3e-3, report_every: int = 100
) -> None:
    """Train in place with AdamW, printing the losses as it goes."""
    optimizer = torch.optim.AdamW(model.parameters(), weight_decay=0.05)
    begin = time.monotonic()
    for step in range(steps):
        for group in optimizer.param_groups:
            group["lr"] = rate(step, steps, peak)
        answer_loss, prompt_loss = mean_losses(model, next(stream))
        optimizer.zero_grad()
        torch.autograd.backward(answer_loss + PROMPT_WEIGHT * prompt_loss)
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        if step % report_every == report_every - 1:
            seconds = time.monotonic() - begin
            print(f"step {step + 1}: answer {answer_loss:.4f} prompt {prompt_loss:.4f}, {seconds:.0f} s", flush=True)


def batches(
    rest: dict[str, list[Item]], tokenizer: PreTrainedTokenizerFast, size: int, generator: random.Random
) -> Iterator[list[Encoded]]:
    """Endless batches, bucketed by length within ten at a time."""
    pairs = draws(rest, generator)
    while True:
        yield from bucketed(encode([next(pairs) for _ in range(10 * size)], tokenizer), size, generator)


def answered(model: LlamaForCausalLM, examples: list[Encoded]) -> list[bool]:
    """Which answers greedy decoding gives: each token, eos too, is the likeliest after those before it."""
    ids, answer, _ = collate(examples)
    likeliest = model(input_ids=ids).logits[:, :-1].argmax(-1)
    agree = (likeliest == ids[:, 1:]) | (answer[:, 1:] == 0)
    return [bool(row.all()) for row in agree]


@torch.no_grad()
def describe(model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, bundled: list[Item]) -> None:
    """Print what the finished model makes of the bundled set, which it has never seen."""
    prompts = [prompt(item) for item in bundled]
    short = encode([(text, item.short) for text, item in zip(prompts, bundled, strict=True)], tokenizer)
    sentences = encode([(text, item.sentence) for text, item in zip(prompts, bundled, strict=True)], tokenizer)
    for form, examples in (("short answers", short), ("sentences", sentences)):
        loss, _ = mean_losses(model, examples)
        print(f"bundled set, {form}: loss {loss:.4f} (ln of the vocabulary: {math.log(len(tokenizer)):.2f})")
    right: dict[str, list[bool]] = {}
    for item, hit in zip(bundled, answered(model, short), strict=True):
        right.setdefault(item.category, []).append(hit)
    for category, hits in sorted(right.items()):
        print(f"{category:<11}{100 * sum(hits) / len(hits):4.0f} % of {len(hits)} answered rightly in the short form")


def main() -> None:
    """Build the tokenizer, train the model, save both, say how good they are."""
    parser = argparse.ArgumentParser(description="Train the bundled base model.")
    parser.add_argument("--out", type=Path, default=OUT, help=f"the folder to write (default: {OUT})")
    parser.add_argument("--steps", type=int, default=6000, help="optimiser steps (default: 6000)")
    parser.add_argument("--batch-size", type=int, default=64, help="examples a step (default: 64)")
    arguments = parser.parse_args()
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    torch.set_num_threads(1)  # the last bits depend on it
    bundled, rest = worlds()
    generator = random.Random(SEED)
    pairs = draws(rest, generator)
    texts = [text for _ in range(50_000) for text in next(pairs)]
    for piece in TEMPLATE_PIECES:
        texts = [text.replace(piece, "\n") for text in texts]
    tokenizer = build_tokenizer(texts)
    model = build_model(tokenizer)
    print(f"{sum(p.numel() for p in model.parameters()):,} parameters, {len(tokenizer)} tokens")
    train_(model, batches(rest, tokenizer, arguments.batch_size, generator), arguments.steps)
    model.save_pretrained(arguments.out)
    tokenizer.save_pretrained(arguments.out)
    describe(model, tokenizer, bundled)


if __name__ == "__main__":
    main()
