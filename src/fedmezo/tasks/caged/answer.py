"""The process of an answer: runs what the model wrote, then calls its function as often as the tests ask.

It decides nothing: it sends values, and the tests are elsewhere. What it prints goes to a file of limited size.
"""

import os
import sys
from typing import Any

from fedmezo.tasks.caged.channel import Channel, pack, unpack
from fedmezo.tasks.caged.confine import confine


def main() -> None:
    """Serve the channel on standard input and output; the limits are the arguments."""
    channel = Channel(os.dup(0), os.dup(1))
    nothing = os.open(os.devnull, os.O_RDONLY) if os.path.exists(os.devnull) else os.pipe()[0]
    os.dup2(nothing, 0)
    os.dup2(2, 1)
    confine(float(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]))
    source = channel.receive()["source"]
    names: dict[str, Any] = {"__name__": "__main__"}
    try:
        exec(compile(source, "<answer>", "exec"), names)  # the point of this file
    except Exception as error:  # noqa: BLE001 - code that is not ours raises whatever it likes
        channel.send(failure(error))
        return
    channel.send({"ready": True})
    while True:
        try:
            call = channel.receive()
        except EOFError:
            return
        channel.send(_called(names, call))


def _called(names: dict[str, Any], call: dict[str, Any]) -> dict[str, Any]:
    try:
        function = names[call["function"]] if call["function"] in names else _missing(call["function"])
        return {"value": pack(function(*unpack(call["arguments"]), **unpack(call["keywords"])))}
    except Exception as error:  # noqa: BLE001 - as above
        return failure(error)


def _missing(name: str) -> Any:
    raise NameError(f"name {name!r} is not defined")


def failure(error: Exception) -> dict[str, Any]:
    """An exception as a message."""
    return {"raised": type(error).__name__, "text": str(error)[:1000]}
