"""Completion of the command `fedmezo` in a shell."""

from __future__ import annotations

import argparse
from pathlib import Path

import shtab

_WORDS_THAT_NAME_FILES = ("words", "target")
"""Arguments that may be a file or something else, such as a key, so that their type does not say it."""


def completion_script(parser: argparse.ArgumentParser, shell: str) -> str:
    """What the shell has to read to complete the parser's commands, options, choices and file names."""
    _complete_files(parser)
    return str(shtab.complete(parser, shell))


def _complete_files(parser: argparse.ArgumentParser) -> None:
    """Tell shtab, by the attribute that it looks for, which arguments of the parser and its commands name files."""
    for action in parser._actions:  # argparse offers no public way to list them
        if isinstance(action, argparse._SubParsersAction):
            for command in action.choices.values():
                _complete_files(command)
        elif action.type is Path or action.dest in _WORDS_THAT_NAME_FILES:
            action.complete = shtab.FILE  # type: ignore[attr-defined]
