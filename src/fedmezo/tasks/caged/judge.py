"""The process of the tests: asks the answer's process for values, and alone decides whether it passes.

The answer's function is called by its name, as in the tests, but runs elsewhere: only plain values come back, so that
nothing of the answer's can reach what compares them.
"""

import builtins
import json
import sys
from collections.abc import Callable
from typing import Any

from fedmezo.tasks.caged.channel import Channel, pack, unpack
from fedmezo.tasks.caged.confine import confine

PASSED, FAILED = 70, 71
"""Exit codes; tests that leave early, or a process that never got here, have others."""


def main() -> None:
    """Judge the program on standard input; the limits and the channel's descriptors are the arguments.

    Exits with PASSED if it passes, else with its fault on the last line of the standard output.
    """
    program = json.load(sys.stdin)
    channel = Channel(int(sys.argv[4]), int(sys.argv[5]))
    confine(float(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]))
    try:
        judge(program, channel)
    except Exception as error:  # noqa: BLE001 - code that is not ours raises whatever it likes
        print("\n" + " ".join(f"{type(error).__name__}: {error}".removesuffix(": ").split()))
        raise SystemExit(FAILED) from None
    raise SystemExit(PASSED)


def judge(program: dict[str, str], channel: Channel) -> None:
    """Return if the program passes; raise whatever is wrong with it."""
    channel.send({"source": program["answer"]})
    _checked(channel.receive())
    names: dict[str, Any] = {"__name__": "__main__"}
    exec(compile(program["helpers"], "<helpers>", "exec"), names)
    if program["entry_point"]:
        names[program["entry_point"]] = caller(channel, program["entry_point"])
    exec(compile(program["tests"], "<tests>", "exec"), names)


def caller(channel: Channel, name: str) -> Callable[..., Any]:
    """The answer's function as the tests see it."""

    def call(*arguments: Any, **keywords: Any) -> Any:
        channel.send({"function": name, "arguments": pack(list(arguments)), "keywords": pack(keywords)})
        return unpack(_checked(channel.receive())["value"])

    return call


def _checked(message: dict[str, Any]) -> dict[str, Any]:
    """A message that brings no exception; one that does is raised as the built-in one of that name."""
    if "raised" not in message:
        return message
    kind = getattr(builtins, str(message["raised"]), None)
    text = str(message.get("text", ""))
    if isinstance(kind, type) and issubclass(kind, Exception):
        try:
            raise kind(text)
        except TypeError:
            pass  # one that takes more than a text
    raise RuntimeError(f"{message['raised']}: {text}")
