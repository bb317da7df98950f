"""Frames over a local stream socket: a few named values and a payload, each with its length before it.

Whatever is no such frame is taken for a broken connection: the receiver closes it and goes on with the next.
"""

from __future__ import annotations

import json
import os
import socket
import struct
from pathlib import Path
from typing import Any

_LENGTHS = struct.Struct("<IQ")  # of the values as JSON, of the payload
_LARGEST_VALUES = 1 << 16
LARGEST_PAYLOAD = 1 << 36
"""Bytes; memory is taken as they come, not as they are announced."""
_AT_ONCE = 1 << 20
_LONGEST_PATH = 100
"""Characters of a Unix socket's path; Linux allows 107."""

Values = dict[str, Any]


def send_frame(connection: socket.socket, values: Values, payload: bytes = b"") -> None:
    """Send one frame.

    Raises:
        OSError: the other side is gone.
    """
    head = json.dumps(values).encode()
    connection.sendall(_LENGTHS.pack(len(head), len(payload)) + head)
    if payload:
        connection.sendall(payload)


def receive_frame(connection: socket.socket) -> tuple[Values, bytes]:
    """Wait for one frame, as long as the socket's timeout allows between two pieces of it.

    Raises:
        ConnectionError: the other side closed, or sent what is no frame.
        TimeoutError: nothing came.
    """
    values_length, payload_length = _LENGTHS.unpack(_exactly(connection, _LENGTHS.size))
    if values_length > _LARGEST_VALUES or payload_length > LARGEST_PAYLOAD:
        raise ConnectionError(f"a frame of {values_length} and {payload_length} bytes is larger than any of ours")
    return _values(_exactly(connection, values_length)), bytes(_exactly(connection, payload_length))


def _values(data: bytes | bytearray) -> Values:
    try:
        values = json.loads(data)
    except (ValueError, RecursionError) as error:
        raise ConnectionError(f"a frame without readable values: {error}") from error
    if not isinstance(values, dict):
        raise ConnectionError("a frame whose values have no names")
    return values


def word(values: Values, name: str) -> str:
    """The value of that name. Raises ConnectionError if there is none, or it is no text."""
    value = values.get(name)
    if not isinstance(value, str):
        raise ConnectionError(f"a frame without the word {name!r}")
    return value


def number(values: Values, name: str) -> int:
    """The value of that name. Raises ConnectionError if there is none, or it is no number of bytes."""
    value = values.get(name)
    if type(value) is not int or not 0 <= value <= LARGEST_PAYLOAD:
        raise ConnectionError(f"a frame without the number {name!r}")
    return value


def _exactly(connection: socket.socket, count: int) -> bytearray:
    data = bytearray()
    while len(data) < count:
        piece = connection.recv(min(count - len(data), _AT_ONCE))
        if not piece:
            raise ConnectionError("the other side closed the connection")
        data += piece
    return data


def listen(path: Path) -> socket.socket:
    """A listening socket that only this user can connect to.

    Raises:
        OSError: the path is too long, or cannot be written.
    """
    if len(str(path)) > _LONGEST_PATH:
        raise OSError(f"the path of the socket is too long: {path}")
    path.unlink(missing_ok=True)
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    earlier = os.umask(0o177)
    try:
        listener.bind(str(path))
    finally:
        os.umask(earlier)
    listener.listen()
    return listener


def connect(path: str, timeout_seconds: float | None = None) -> socket.socket:
    """Connect to a listening socket.

    Raises:
        OSError: nobody listens there.
    """
    connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    connection.settimeout(timeout_seconds)
    try:
        connection.connect(path)
    except OSError:
        connection.close()
        raise
    return connection
