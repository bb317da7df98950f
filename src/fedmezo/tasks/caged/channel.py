"""How the tests speak to the answer: plain values as JSON, each message a line. Nothing that is sent can run.

Lists, numbers, text, truth values and None are JSON's own; other plain types are an object with their name as its key.
"""

import json
import os
from typing import Any

LONGEST_LINE = 1 << 24
"""Bytes of a message."""


def pack(value: Any) -> Any:
    """A plain value as JSON has it. Subclasses count as what they are made of.

    Raises:
        TypeError: it is not plain.
    """
    if value is None or isinstance(value, bool):
        return value
    for kind in (int, float, str):
        if isinstance(value, kind):
            return kind(value)
    if isinstance(value, list):
        return [pack(item) for item in value]
    if isinstance(value, dict):
        return {"dict": [[pack(key), pack(item)] for key, item in value.items()]}
    if isinstance(value, complex):
        return {"complex": [value.real, value.imag]}
    if isinstance(value, bytes):
        return {"bytes": value.hex()}
    for name, collection in (("tuple", tuple), ("set", set), ("frozenset", frozenset)):
        if isinstance(value, collection):
            return {name: [pack(item) for item in value]}
    raise TypeError(f"a value of type {type(value).__name__} is no plain data")


def unpack(value: Any) -> Any:
    """The inverse of `pack`.

    Raises:
        ValueError, TypeError: it is none of its values.
    """
    if isinstance(value, list):
        return [unpack(item) for item in value]
    if not isinstance(value, dict):
        return value
    ((name, content),) = value.items()
    if name == "dict":
        return {unpack(key): unpack(item) for key, item in content}
    if name == "complex":
        return complex(*map(float, content))
    if name == "bytes":
        return bytes.fromhex(content)
    collections: dict[str, type] = {"tuple": tuple, "set": set, "frozenset": frozenset}
    if name not in collections:
        raise ValueError(f"unknown kind of value {name!r}")
    return collections[name](unpack(item) for item in content)


class Channel:
    """The two ends of pipes to the other side.

    Args:
        inward: descriptor to read from.
        outward: descriptor to write to.
    """

    def __init__(self, inward: int, outward: int) -> None:
        self._in = os.fdopen(inward, "rb")
        self._out = os.fdopen(outward, "wb")

    def send(self, message: Any) -> None:
        """Send a message of JSON's types. Raises OSError if nobody is there."""
        self._out.write(json.dumps(message).encode() + b"\n")
        self._out.flush()

    def receive(self) -> dict[str, Any]:
        """Wait for a message.

        Raises:
            EOFError: the other side has ended.
            ValueError: what came is no message.
        """
        line = self._in.readline(LONGEST_LINE)
        if not line:
            raise EOFError("the other side has ended")
        message = json.loads(line)
        if not isinstance(message, dict):
            raise ValueError("not a message")
        return message
