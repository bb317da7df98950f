"""What the commands' argument parsers have in common."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import TypeAlias

Commands: TypeAlias = "argparse._SubParsersAction[argparse.ArgumentParser]"
Command = Callable[[argparse.Namespace], int]


def add_command(
    commands: Commands, name: str, command: Command, summary: str, *, usage: str | None = None, examples: str = ""
) -> argparse.ArgumentParser:
    """Add a command to those of `fedmezo`; its own arguments are the caller's to add.

    Args:
        commands: where to.
        name: what the user types.
        command: what it does; returns the exit code.
        summary: for the list of commands and for the command's own help.
        usage: instead of the line that argparse makes from the arguments.
        examples: shown below them as they are.
    """
    parser = commands.add_parser(
        name,
        help=summary,
        description=summary,
        usage=usage,
        epilog=examples,
        formatter_class=argparse.RawDescriptionHelpFormatter if examples else argparse.HelpFormatter,
    )
    parser.set_defaults(command=command)
    return parser


def add_places(parser: argparse.ArgumentParser, *, data: str = "folder of the run's data files") -> None:
    """What may not be where a run had it; `data` says what its folder is for."""
    parser.add_argument("--model", metavar="BASE", help="the base model, if it is not where the run had it")
    parser.add_argument("--data-root", type=Path, metavar="DIR", help=data)


NO_DATA = "accepted as by other commands; no data is read"
"""Of commands that need a run's model alone."""


def add_own_code(parser: argparse.ArgumentParser) -> None:
    """The consent that a run's configuration gives with `model.trust_remote_code`."""
    parser.add_argument(
        "--trust-remote-code", action="store_true", help="run Python code that the model brings along, with your rights"
    )


def count(text: str) -> int:
    """The type of an argument that is a whole number of at least 1."""
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError(f"{text} is not a whole number of at least 1")
    return number


def text(word: str) -> str:
    """The type of an argument that a model reads: bytes that are no text reach Python as halves of surrogate pairs."""
    try:
        word.encode()
    except UnicodeEncodeError:
        raise argparse.ArgumentTypeError("it is no text in UTF-8") from None
    return word


def path_and_keys(words: list[str]) -> tuple[Path | None, list[str]]:
    """A configuration (or a run's folder), if the first word names one, and the keys to change."""
    if words and "=" not in words[0]:
        return Path(words[0]), words[1:]
    return None, words
