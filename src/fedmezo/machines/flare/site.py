"""The command on a site: keeps the model worker and FLARE's client running, and shows what they do."""

from __future__ import annotations

import fcntl
import os
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from types import FrameType

from fedmezo.data.parse import read_examples
from fedmezo.data.rows import Layout
from fedmezo.errors import ConfigError, DataError
from fedmezo.machines.flare.doorstep import Doorstep, connection_fault
from fedmezo.machines.flare.exchange import WORKER_SOCKET
from fedmezo.machines.flare.party import party_command
from fedmezo.machines.flare.project import Kit
from fedmezo.machines.processes import stop
from fedmezo.machines.settings import WorkerOptions
from fedmezo.scratch import scratch_folder

_SECONDS_BETWEEN_LOOKS = 0.5
_SECONDS_BEFORE_RESTART = 2.0
FLARE_LOG = "flare.txt"
LOCK = "in-use"
_PRIVATE = 0o077
"""What everybody else may do with the files that a site and its processes write: nothing."""


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


class _Asked:
    """Whether the user has asked to stop, once or more often."""

    def __init__(self) -> None:
        self.to_stop = False
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, self._note)

    def _note(self, _number: int, _frame: FrameType | None) -> None:
        self.to_stop = True


def run_site(kit: Kit, options: WorkerOptions) -> int:
    """Take part until interrupted; returns the exit code.

    Raises:
        DataError: there is no such file, or it is none of examples.
        ConfigError: the kit is in use on this machine.
    """
    os.umask(_PRIVATE)
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
    asked = _Asked()
    with ExitStack() as stack:
        rivals = stack.enter_context(_alone(kit))
        socket = str(stack.enter_context(scratch_folder()) / "worker")
        environment = {**os.environ, WORKER_SOCKET: socket}
        worker = replace(options, socket=socket)
        children = [
            _Child("the model worker", lambda: subprocess.Popen(worker.command(), start_new_session=True)),
            _Child("FLARE's client", lambda: _start_flare(kit, environment)),
        ]
        for child in children:
            stack.callback(child.end)
        doorstep = Doorstep(kit, kit.folder / FLARE_LOG)
        while not asked.to_stop:
            for child in children:
                child.keep()
            flare = children[-1].process
            assert flare is not None, "it was just started"
            for news in (*rivals(), *doorstep.look(time.monotonic(), flare.pid)):
                print(f"notice: {news}", flush=True)
            time.sleep(_SECONDS_BETWEEN_LOOKS)
        print("leaving", flush=True)
    return 0


@contextmanager
def _alone(kit: Kit) -> Iterator[Callable[[], list[str]]]:
    """Keep a kit from being used twice on this machine; yields what tells of attempts since it was last called.

    Raises:
        ConfigError: it is in use; whoever uses it is told.
    """
    with (kit.folder / LOCK).open("ab") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            lock.write(b".")
            raise ConfigError(
                f"{kit.folder}: another `fedmezo site` runs with this kit, which is for one site at a time"
            ) from error
        lock.truncate(0)

        def attempts() -> list[str]:
            count = os.fstat(lock.fileno()).st_size
            lock.truncate(0)
            return ["another `fedmezo site` was started with this kit, and refused"] * bool(count)

        yield attempts


def _start_flare(kit: Kit, environment: dict[str, str]) -> subprocess.Popen[bytes]:
    with (kit.folder / FLARE_LOG).open("ab") as log:
        os.fchmod(log.fileno(), 0o600)  # earlier versions let others read it
        return subprocess.Popen(party_command(kit), env=environment, stdout=log, stderr=log, start_new_session=True)
