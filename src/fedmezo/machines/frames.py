"""Frames over a local stream socket: a few named values and a payload, each with its length before it."""

from __future__ import annotations

import json
import os
import socket
import struct
from pathlib import Path
from typing import Any

_LENGTHS = struct.Struct("<IQ")  # of the values as JSON, of the payload
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
        ConnectionError: the other side closed.
        TimeoutError: nothing came.
    """
    head_length, payload_length = _LENGTHS.unpack(_exactly(connection, _LENGTHS.size))
    values: Values = json.loads(_exactly(connection, head_length))
    return values, bytes(_exactly(connection, payload_length))


def _exactly(connection: socket.socket, count: int) -> bytearray:
    data = bytearray(count)
    view = memoryview(data)
    while view:
        received = connection.recv_into(view)
        if not received:
            raise ConnectionError("the other side closed the connection")
        view = view[received:]
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
