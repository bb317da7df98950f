"""The commands `eval` and `generate` on the command line; what is heavy is imported when they run."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from fedmezo.arguments import NO_DATA, Commands, add_command, add_own_code, add_places, count, text
from fedmezo.records import Example

if TYPE_CHECKING:
    from fedmezo.tasks.subject import Hardware

_EVAL_EXAMPLES = """\
examples:
  fedmezo eval RUN                                 loss on the run's own validation and test examples
  fedmezo eval RUN --match --with-base             and the share of right answers, before and after
  fedmezo eval RUN --round 100 --gsm8k             GSM8K with eight worked examples, after 100 rounds
  fedmezo eval ADAPTER --data dolly-15k --data-root DIR
  fedmezo eval MODEL --mmlu --tasks hellaswag      tasks of lm-evaluation-harness: pip install 'fedmezo[eval]'
"""

_GSM8K_FORMS = {"gsm8k": "after eight worked examples", "gsm8k-zero-shot": "in the prompt that tuning used"}


def add_eval(commands: Commands) -> None:
    """The command `eval`."""
    summary = "measure losses and right answers of a run, an adapter or a model"
    parser = add_command(commands, "eval", _eval, summary, examples=_EVAL_EXAMPLES)
    _add_subject(parser, data="folder of the data files (the run's, or data)")
    parser.add_argument("--data", action="append", default=[], metavar="TYPE", help="loss on a data set (data.type)")
    parser.add_argument("--tok-len", type=count, metavar="N", help="longest example in tokens (the run's, or 1024)")
    parser.add_argument("--match", action="store_true", help="also the share of greedy answers that are word for word")
    for form, prompt in _GSM8K_FORMS.items():
        parser.add_argument(
            f"--{form}", action="append_const", dest="gsm8k", const=form, default=[], help=f"GSM8K {prompt}"
        )
    parser.add_argument("--shots", type=Path, metavar="FILE", help="other worked examples, in GSM8K's format")
    parser.add_argument("--humaneval", action="store_true", help="HumanEval: runs code that the model wrote, sandboxed")
    parser.add_argument("--mmlu", action="store_true", help="MMLU, by lm-evaluation-harness")
    parser.add_argument("--tasks", default="", metavar="A,B", help="tasks of lm-evaluation-harness")
    parser.add_argument("--task-files", type=Path, metavar="DIR", help="folder with more task files for it")
    parser.add_argument("--limit", type=count, metavar="N", help="only the first N items of each task")
    parser.add_argument("--max-new-tokens", type=count, metavar="N", help="longest answer")
    parser.add_argument("--tokens-per-batch", type=count, default=8192, metavar="N", help="memory of a batch (8192)")
    parser.add_argument("--with-base", action="store_true", help="the same for the base model without the adapter")
    parser.add_argument("--out", type=Path, metavar="DIR", help="folder for scores and items")


def add_generate(commands: Commands) -> None:
    """The command `generate`."""
    parser = add_command(commands, "generate", _generate, "answer an instruction before and after tuning")
    _add_subject(parser, data=NO_DATA)
    parser.add_argument("instruction", type=text, help="what is asked, as in the training data")
    parser.add_argument("--input", type=text, default="", metavar="TEXT", help="what the instruction is about")
    parser.add_argument("--max-new-tokens", type=count, default=128, metavar="N", help="longest answer (128)")


def _add_subject(parser: argparse.ArgumentParser, data: str) -> None:
    parser.add_argument("target", metavar="RUN|ADAPTER|MODEL", help="a run's or an adapter's folder, or a model")
    parser.add_argument("--round", type=_round, metavar="N", help="of a run: the state after N rounds")
    parser.add_argument("--gpu", action=argparse.BooleanOptionalAction, help="compute on a GPU (as the run does)")
    parser.add_argument("--format", choices=("alpaca", "chat"), help="prompt: Alpaca's, or the model's own (the run's)")
    parser.add_argument("--dtype", choices=("float32", "bfloat16", "float16"), help="precision of the base weights")
    add_places(parser, data=data)
    add_own_code(parser)


def _round(text: str) -> int:
    number = int(text)
    if number < 0:
        raise argparse.ArgumentTypeError(f"{text} is not a round")
    return number


def _hardware(options: argparse.Namespace) -> Hardware:
    from fedmezo.runs.places import Moved
    from fedmezo.tasks.subject import Hardware

    moved = Moved(options.model, options.data_root, options.trust_remote_code)
    return Hardware(options.gpu, options.dtype, moved)


def _eval(options: argparse.Namespace) -> int:
    from rich.console import Console

    from fedmezo.tasks.examine import Request, examine

    request = Request(
        target=options.target,
        round_index=options.round,
        hardware=_hardware(options),
        data=options.data,
        data_root=options.data_root,
        tok_len=options.tok_len,
        match=options.match,
        gsm8k=options.gsm8k,
        mmlu=options.mmlu,
        humaneval=options.humaneval,
        shots=options.shots,
        tasks=[name for name in options.tasks.split(",") if name],
        task_folder=options.task_files,
        limit=options.limit,
        max_new_tokens=options.max_new_tokens,
        tokens_per_batch=options.tokens_per_batch,
        with_base=options.with_base,
        prompt_format=options.format,
        out=options.out,
    )
    return examine(request, Console())


def _generate(options: argparse.Namespace) -> int:
    from rich.console import Console

    from fedmezo.tasks.reply import reply

    example = Example(options.instruction, options.input, "", "")
    return reply(
        options.target, example, Console(), options.max_new_tokens, _hardware(options), options.round, options.format
    )
