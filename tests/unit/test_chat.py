"""Conversations: which tokens count, under templates of several kinds; and prompts to answer."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast
from transformers.convert_slow_tokenizer import bytes_to_unicode

from fedmezo.data.encode import encode_examples, encode_texts
from fedmezo.data.prompt import Prompts, prompts_for
from fedmezo.errors import DataError, ModelError
from fedmezo.records import IGNORE_LABEL, Example, Turn
from tests.gguf_files import CHAT_TEMPLATE

CHATML = CHAT_TEMPLATE.replace("<|start|>", "<s>").replace("<|end|>", "</s>")
LLAMA = (
    "{{ bos_token }}{% for m in messages %}{% if m['role'] == 'user' %}[INST] {{ m['content'] | trim }} [/INST]"
    "{% elif m['role'] == 'assistant' %} {{ m['content'] | trim }} {{ eos_token }}"
    "{% else %}{{ raise_exception('roles must be user and assistant') }}{% endif %}{% endfor %}"
)
THINKING = (  # earlier answers lose what was thought, the last one has a place for it
    "{% for m in messages %}<s>{{ m['role'] }}\n{% if m['role'] == 'assistant' and loop.last %}"
    "<think>\n\n</think>\n\n{% endif %}{{ m['content'] }}</s>\n{% endfor %}"
    "{% if add_generation_prompt %}<s>assistant\n{% endif %}"
)
TOGGLED = (  # as Qwen3's: without thinking, the last answer and the prompt for one begin with an empty thought
    "{% set empty = '<think>\n\n</think>\n\n' %}"
    "{% for m in messages %}<s>{{ m['role'] }}\n{{ empty if m['role'] == 'assistant' and loop.last else '' }}"
    "{{ m['content'] }}</s>\n{% endfor %}{% if add_generation_prompt %}<s>assistant\n"
    "{% if enable_thinking is defined and enable_thinking is false %}{{ empty }}{% endif %}{% endif %}"
)
ALWAYS_THINKING = (  # as DeepSeek-R1's: a thought is opened for the model, and is not shown of an answer that is there
    "{% for m in messages %}<s>{{ m['role'] }}: {{ m['content'].split('</think>')[-1] | trim }}</s>{% endfor %}"
    "{% if add_generation_prompt %}<s>assistant: <think>\n{% endif %}"
)
WITHOUT_OPENING = "{% for m in messages %}<s>{{ m['role'] }}: {{ m['content'] }}</s>{% endfor %}"
DATED = "{{ strftime_now('%d %B %Y') }} " + CHATML
TURNS = (Turn("user", "Hi, who?"), Turn("assistant", "Ann."), Turn("user", "And then?"), Turn("assistant", "Bob, ok"))
TALK = Example("And then?", "", "Bob, ok", "", "conversation", TURNS)


def tokenizer(template: str | None = None) -> Any:
    """Bytes, with tokens that open and close; the first is put before every plain text."""
    alphabet: Any = bytes_to_unicode  # has no annotations
    letters = {letter: number for number, letter in enumerate(alphabet().values())}
    backend = Tokenizer(models.BPE(vocab=letters, merges=[]))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    backend.add_special_tokens([AddedToken("<s>", special=True), AddedToken("</s>", special=True)])
    backend.post_processor = processors.TemplateProcessing("<s> $A", special_tokens=[("<s>", 256)])
    fast: Any = PreTrainedTokenizerFast
    made = fast(tokenizer_object=backend, bos_token="<s>", eos_token="</s>", pad_token="</s>")
    made.chat_template = template
    return made


def counted(example: Example, prompts: Prompts, made: Any) -> tuple[str, list[str]]:
    """The whole text, and the stretches of it that the loss counts."""
    batch = encode_examples([example], made, 500, prompts=prompts).batch([0])
    ids, labels = batch.input_ids[0].tolist(), batch.labels[0].tolist()
    assert all(label in (token, IGNORE_LABEL) for token, label in zip(ids, labels, strict=True))
    stretches: list[list[int]] = []
    for index, label in enumerate(labels):
        if label != IGNORE_LABEL:
            if index == 0 or labels[index - 1] == IGNORE_LABEL:
                stretches.append([])
            stretches[-1].append(label)
    return made.decode(ids), [made.decode(stretch) for stretch in stretches]


@pytest.mark.parametrize(
    ("template", "whole", "answers"),
    [
        (
            CHATML,
            "<s>user\nHi, who?</s>\n<s>assistant\nAnn.</s>\n<s>user\nAnd then?</s>\n<s>assistant\nBob, ok</s>",
            ["Ann.</s>", "Bob, ok</s>"],
        ),
        (
            LLAMA,
            "<s>[INST] Hi, who? [/INST] Ann. </s>[INST] And then? [/INST] Bob, ok </s>",
            [" Ann. </s>", " Bob, ok </s>"],
        ),
        (
            THINKING,
            "<s>user\nHi, who?</s>\n<s>assistant\nAnn.</s>\n<s>user\nAnd then?</s>\n"
            "<s>assistant\n<think>\n\n</think>\n\nBob, ok</s>",
            ["Ann.</s>", "<think>\n\n</think>\n\nBob, ok</s>"],
        ),
        (
            TOGGLED,
            "<s>user\nHi, who?</s>\n<s>assistant\nAnn.</s>\n<s>user\nAnd then?</s>\n"
            "<s>assistant\n<think>\n\n</think>\n\nBob, ok</s>",
            ["Ann.</s>", "Bob, ok</s>"],
        ),
        (
            ALWAYS_THINKING,
            "<s>user: Hi, who?</s><s>assistant: Ann.</s><s>user: And then?</s><s>assistant: Bob, ok</s>",
            ["Ann.</s>", "Bob, ok</s>"],
        ),
        (
            WITHOUT_OPENING,
            "<s>user: Hi, who?</s><s>assistant: Ann.</s><s>user: And then?</s><s>assistant: Bob, ok</s>",
            ["<s>assistant: Ann.</s>", "<s>assistant: Bob, ok</s>"],
        ),
    ],
)
def test_the_assistants_turns_count_and_no_others(template: str, whole: str, answers: list[str]) -> None:
    made = tokenizer(template)
    prompts = prompts_for("alpaca", "", made)  # turns are put as the template puts them, whatever the format
    assert counted(TALK, prompts, made) == (whole, answers)
    single = Example("Hi, who?", "", "Ann.", "")
    as_turns = Example("", "", "", "", "conversation", TURNS[:2])
    assert counted(single, prompts_for("chat", "", made), made) == counted(as_turns, prompts, made)


def test_an_instruction_with_input_and_a_completion_become_a_users_turn() -> None:
    made = tokenizer(CHATML)
    prompts = prompts_for("chat", "", made)
    start = "<s>user\nAdd.\n\n1 2</s>\n<s>assistant\n"
    assert counted(Example("Add.", "1 2", "3", ""), prompts, made) == (start + "3</s>", ["3</s>"])
    assert prompts.prompt(Example("Add.", "1 2", "3", "")).content == start
    assert prompts.prompt(Example("Add.", "1 2", "3", "")).opened, "the template wrote the opening token"
    assert counted(Example("Go", "", " on", "", "completion"), prompts, made)[1] == [" on</s>"]


def test_a_template_of_ones_own() -> None:
    made = tokenizer()
    prompts = prompts_for("template", "Q: {instruction} {{{input}}}\nA:", made)
    assert counted(Example("Add {x}.", "1 2", " 3", ""), prompts, made) == (
        "<s>Q: Add {x}. {1 2}\nA: 3</s>",
        [" 3</s>"],
    )


def test_completions_and_plain_texts_are_taken_as_they_are() -> None:
    made = tokenizer()
    prompts = prompts_for("alpaca", "", made)
    assert counted(Example("Once upon", "", " a time", "", "completion"), prompts, made) == (
        "<s>Once upon a time</s>",
        [" a time</s>"],
    )
    assert counted(Example("", "", "Once.", "", "text"), prompts, made) == ("<s>Once.</s>", ["Once.</s>"])


def test_of_a_candidate_its_own_tokens_count_alone() -> None:
    made = tokenizer(CHATML)
    question = Example("Is it?", "", "Yes", "", choices=("No", "Yes"))
    for name in ("alpaca", "chat"):
        text = prompts_for(name, "", made).candidate(question, "No")
        batch = encode_texts([text], made, 500).batch([0])
        assert made.decode(batch.labels[0][batch.labels[0] != IGNORE_LABEL]) == "No"
        assert made.decode(batch.input_ids[0]).endswith("No"), "nothing follows it"


@pytest.mark.parametrize(
    ("template", "prompt", "judged"),
    [
        (CHATML, "<s>user\nOk?</s>\n<s>assistant\n", "Yes"),
        (LLAMA, "<s>[INST] Ok? [/INST]", " Yes"),
        (THINKING, "<s>user\nOk?</s>\n<s>assistant\n", "Yes"),
        (TOGGLED, "<s>user\nOk?</s>\n<s>assistant\n<think>\n\n</think>\n\n", "Yes"),
        (ALWAYS_THINKING, "<s>user: Ok?</s><s>assistant: ", " Yes"),
        (WITHOUT_OPENING, "<s>user: Ok?</s>", " Yes"),
    ],
)
def test_prompts_and_candidates_stand_in_the_text_that_is_trained_on(template: str, prompt: str, judged: str) -> None:
    made = tokenizer(template)
    prompts = prompts_for("chat", "", made)
    question = Example("Ok?", "", "Yes", "", choices=("No", "Yes"))
    whole = prompts.whole(question).content
    assert prompts.prompt(question).content == prompt
    assert whole.startswith(prompt)
    text = prompts.candidate(question, "Yes")
    assert whole.startswith(text.content)
    batch = encode_texts([text], made, 500).batch([0])
    assert made.decode(batch.labels[0][batch.labels[0] != IGNORE_LABEL]) == judged


def test_the_day_is_no_part_of_the_data() -> None:
    assert prompts_for("chat", "", tokenizer(DATED)).whole(TALK).content.startswith("26 Jul 2024 <s>user")


def test_a_conversation_cut_short_keeps_the_answers_that_are_left() -> None:
    made = tokenizer(CHATML)
    prompts = prompts_for("alpaca", "", made)
    whole = encode_examples([TALK], made, 500, prompts=prompts)
    cut = encode_examples([TALK], made, int(whole.lengths[0]) - 3, prompts=prompts)
    labels = cut.batch([0]).labels[0]
    assert made.decode(labels[labels != IGNORE_LABEL]) == "Ann.</s>Bob, "
    assert torch.equal(whole.batch([0]).labels[0][: len(labels)], labels)
    with pytest.raises(DataError, match="no room for an answer"):
        encode_examples([TALK], made, 10, prompts=prompts)


def test_cached_as_made(tmp_path: Path) -> None:
    made = tokenizer(CHATML)
    prompts = prompts_for("alpaca", "", made)
    first, second = (encode_examples([TALK], made, 500, tmp_path, prompts) for _ in range(2))
    assert torch.equal(first.batch([0]).labels, second.batch([0]).labels)
    assert len(list(tmp_path.iterdir())) == 1
    encode_examples([TALK], made, 500, tmp_path, prompts_for("alpaca", "", tokenizer(LLAMA)))
    assert len(list(tmp_path.iterdir())) == 2


def test_what_a_template_refuses_is_said() -> None:
    made = tokenizer(LLAMA)
    prompts = prompts_for("chat", "", made)
    with pytest.raises(DataError, match=r"refuses a conversation of system, user, assistant: roles must be user"):
        prompts.whole(Example("", "", "", "", "conversation", (Turn("system", "Be brief."), *TURNS[:2])))
    shouting = prompts_for("chat", "", tokenizer(CHATML.replace("message['content']", "message['content'] | upper")))
    with pytest.raises(DataError, match=r"does not show an answer as it is: 'Ann\.'"):
        shouting.whole(Example("Hi", "", "Ann.", ""))


def test_of_several_templates_the_default_is_taken() -> None:
    made = tokenizer()
    made.chat_template = {"default": CHATML, "tool_use": LLAMA}
    assert prompts_for("chat", "", made).whole(TALK).content.startswith("<s>user\nHi")
    made.chat_template = {"rag": CHATML, "tool_use": LLAMA}
    with pytest.raises(ModelError, match="none is its default"):
        prompts_for("chat", "", made)


def test_without_a_template_there_is_no_chat() -> None:
    with pytest.raises(ModelError, match="has no chat template"):
        prompts_for("chat", "", tokenizer())
    with pytest.raises(ModelError, match="has no chat template"):
        prompts_for("alpaca", "", tokenizer()).whole(TALK)
