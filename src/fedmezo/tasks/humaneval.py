"""HumanEval (Chen et al. 2021): functions to complete, judged by running their tests. Greedy, so pass@1 of one answer.

Running an answer means running code that a model wrote: see `sandbox` for what that is allowed to do.
"""

from __future__ import annotations

import ast
from collections.abc import Sequence
from pathlib import Path

from fedmezo.data.download import OnProgress, download
from fedmezo.data.parse import read_examples
from fedmezo.data.rows import Layout
from fedmezo.models.generate import Decoding, OnItems, complete
from fedmezo.records import Example
from fedmezo.tasks.outcome import Outcome, judged
from fedmezo.tasks.sandbox import Limits, Program, require_sandbox, run_program
from fedmezo.tasks.subject import Subject

FILE = "HumanEval.jsonl.gz"
URL = "https://raw.githubusercontent.com/openai/human-eval/463c980b59e818ace59f6f9803cd92c749ceae61/data/HumanEval.jsonl.gz"
MAX_NEW_TOKENS = 256
STOPS = ("\nclass", "\ndef", "\n#", "\nif", "\nprint", "\n@")
"""What begins something after the function (section 3.1 of the paper), and a decorator."""

_LAYOUT = Layout(instruction="prompt", input="entry_point", output="test", category="task_id")


def load_problems(root: Path, on_progress: OnProgress) -> list[Example]:
    """The problems from `root`, fetched there if need be: prompt, function's name as input, tests as output.

    Raises:
        DataError: the file cannot be had or is damaged.
    """
    path = root / FILE
    if not path.exists() and (root / FILE.removesuffix(".gz")).exists():
        path = root / FILE.removesuffix(".gz")
    if not path.exists():
        download(URL, path, on_progress)
    return read_examples(path, _LAYOUT)


def program(problem: Example, completion: str) -> Program:
    """The completed function, and its tests with the call that runs them."""
    return Program(
        answer=f"{problem.instruction}{completion}\n",
        tests=f"{problem.output}\ncheck({problem.input})\n",
        entry_point=problem.input,
        helpers=_helpers(problem.instruction),
    )


def _helpers(prompt: str) -> str:
    """The prompt as a program of its own, whose last function does nothing: tests call the functions before it."""
    for text in (prompt, f"{prompt}    pass\n"):
        try:
            ast.parse(text)
        except SyntaxError:
            continue
        return text
    return ""


def human_eval(
    subject: Subject,
    problems: Sequence[Example],
    decoding: Decoding,
    on_items: OnItems,
    limits: Limits = Limits(),  # noqa: B008  # frozen
) -> Outcome:
    """The share of problems whose greedy completion passes its tests.

    Raises:
        RunError: the sandbox does not work here.
    """
    require_sandbox()
    stopped = Decoding(decoding.max_new_tokens, STOPS, decoding.tokens_per_batch)
    prompts = [problem.instruction for problem in problems]
    texts = complete(subject.model, subject.tokenizer, prompts, stopped, on_items)
    items = []
    for problem, text in zip(problems, texts, strict=True):
        verdict = run_program(program(problem, text), limits)
        items.append({"task": problem.category, "answer": text, "correct": verdict.passed, "reason": verdict.reason})
    return judged("humaneval", "pass@1", items)
