"""Ending processes that we started, each the leader of a process group of its own."""

from __future__ import annotations

import os
import signal
import subprocess
from contextlib import suppress

_SECONDS_TO_END = 5.0


def stop(process: subprocess.Popen[bytes]) -> None:
    """Ask the process's group to end, and make it."""
    for number in (signal.SIGTERM, signal.SIGKILL):
        with suppress(ProcessLookupError):
            os.killpg(process.pid, number)
        with suppress(subprocess.TimeoutExpired):
            process.wait(_SECONDS_TO_END)
            if number == signal.SIGTERM:
                continue  # its children may be slower
    process.wait()
