"""The command on a site: keeps the model worker and FLARE's client running, and shows what they do."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import time
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from types import FrameType

from fedmezo.data.parse import read_examples
from fedmezo.data.rows import Layout
from fedmezo.errors import DataError
from fedmezo.machines.flare.exchange import WORKER_SOCKET
from fedmezo.machines.flare.party import party_command
from fedmezo.machines.flare.project import Kit
from fedmezo.machines.processes import stop
from fedmezo.machines.settings import WorkerOptions
from fedmezo.scratch import scratch_folder

_SECONDS_BETWEEN_LOOKS = 0.5
_SECONDS_BEFORE_RESTART = 2.0
_SECONDS_TO_CONNECT = 5.0
FLARE_LOG = "flare.txt"


@dataclass(slots=True, eq=False)
class _Child:
    """A process that is started again when it ends."""

    name: str
    start: Callable[[], subprocess.Popen[bytes]]
    process: subprocess.Popen[bytes] | None = None

    def keep(self) -> None:
        """Start it if it does not run."""
        if self.process is not None and self.process.poll() is None:
            return
        if self.process is not None:
            print(f"{self.name} ended ({self.process.returncode}); starting it again", flush=True)
            stop(self.process)  # what it started itself
            time.sleep(_SECONDS_BEFORE_RESTART)
        self.process = self.start()

    def end(self) -> None:
        """Stop it."""
        if self.process is not None:
            stop(self.process)


class _Stop(Exception):  # noqa: N818 - how the signal handler leaves the loop
    """The user asked to stop."""


def run_site(kit: Kit, options: WorkerOptions) -> int:
    """Take part until interrupted; returns the exit code.

    Raises:
        DataError: there is no such file, or it is none of examples.
    """
    if not Path(options.data).is_file():
        raise DataError(f"{options.data}: there is no such file; give --data the site's own examples")
    read_examples(Path(options.data), Layout())  # a wrong file is said now, not when a run comes
    print(
        f"site {kit.party}, client {kit.client}; server {kit.host}:{kit.port}; FLARE's log is {kit.folder}/{FLARE_LOG}"
    )
    if kit.plaintext:
        print("notice: this kit speaks in plain text, without encryption")
    if (fault := connection_fault(kit.host, kit.port)) is not None:
        print(f"notice: nothing answers at {kit.host}:{kit.port} yet ({fault}); trying until it does", flush=True)
    signal.signal(signal.SIGTERM, _raise_stop)
    with ExitStack() as stack:
        socket = str(stack.enter_context(scratch_folder()) / "worker")
        environment = {**os.environ, WORKER_SOCKET: socket}
        worker = replace(options, socket=socket)
        children = [
            _Child("the model worker", lambda: subprocess.Popen(worker.command(), start_new_session=True)),
            _Child("FLARE's client", lambda: _start_flare(kit, environment)),
        ]
        for child in children:
            stack.callback(child.end)
        try:
            while True:
                for child in children:
                    child.keep()
                time.sleep(_SECONDS_BETWEEN_LOOKS)
        except (KeyboardInterrupt, _Stop):
            print("leaving")
    return 0


def connection_fault(host: str, port: int) -> str | None:
    """Why there is no connection to the server now; None if there is."""
    try:
        socket.create_connection((host, port), timeout=_SECONDS_TO_CONNECT).close()
    except OSError as error:
        return error.strerror or str(error)
    return None


def _start_flare(kit: Kit, environment: dict[str, str]) -> subprocess.Popen[bytes]:
    with (kit.folder / FLARE_LOG).open("ab") as log:
        return subprocess.Popen(party_command(kit), env=environment, stdout=log, stderr=log, start_new_session=True)


def _raise_stop(_number: int, _frame: FrameType | None) -> None:
    raise _Stop
