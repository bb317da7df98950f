"""Runs a program that a model wrote: in a process of its own, with limits, in a folder that is removed afterwards.

The child (`sandbox_child.py`) gives up what it can before it runs the program: processor time, memory, file size and
the number of files are limited, other processes are forbidden, the network is taken away where the kernel lets an
ordinary user do so, and root becomes nobody. This stops mistakes and greed; it is no prison for hostile code, which
belongs in a virtual machine.
"""

from __future__ import annotations

import os
import secrets
import signal
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

from fedmezo.errors import RunError

CHILD = Path(__file__).parent / "sandbox_child.py"


@dataclass(frozen=True, slots=True)
class Limits:
    """What a program may use."""

    seconds: float = 10.0
    memory_bytes: int = 1 << 30
    file_bytes: int = 1 << 20


@dataclass(frozen=True, slots=True)
class Verdict:
    """How a program ended."""

    passed: bool  # it reached its last line
    reason: str  # the last line of its error, or what stopped it; empty if it passed


def run_program(source: str, limits: Limits) -> Verdict:
    """Run a Python program; it passes if it reaches its end, which leaving early with any exit code does not.

    Raises:
        OSError: no process can be started.
    """
    word = secrets.token_hex(16)
    command = [sys.executable, "-I", "-S", "-B", str(CHILD)]
    command += [str(limits.seconds), str(limits.memory_bytes), str(limits.file_bytes)]
    with tempfile.TemporaryDirectory(prefix="fedmezo-sandbox-") as folder, tempfile.TemporaryFile() as output:
        os.chmod(folder, 0o777)  # root becomes nobody in it
        process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=output,  # a file, since its size is limited
            stderr=subprocess.STDOUT,
            cwd=folder,
            env={"PATH": "/usr/bin:/bin", "HOME": folder, "TMPDIR": folder},
            start_new_session=True,
        )
        try:
            process.communicate(f"{word}\n{source}".encode(), timeout=limits.seconds)
        except subprocess.TimeoutExpired:
            return Verdict(False, f"stopped after {limits.seconds:g} s")
        finally:
            _end(process)
        output.seek(0)
        text = output.read().decode(errors="replace")
    if text.endswith(word):
        return Verdict(True, "")
    return Verdict(False, _reason(process.returncode, text))


def require_sandbox() -> None:
    """Make sure that a good program passes and a bad one does not.

    Raises:
        RunError: the sandbox does not work on this machine, so every answer would fail.
    """
    good, bad = (run_program(source, Limits()) for source in ("import math\nassert math.pi > 3", "raise SystemExit(0)"))
    if not good.passed or bad.passed:
        raise RunError(f"the sandbox for model-written code does not work on this machine: {good.reason}")


def _end(process: subprocess.Popen[bytes]) -> None:
    """Kill what is left of the program's process group and wait for it."""
    try:
        os.killpg(process.pid, signal.SIGKILL)
    except ProcessLookupError:
        pass
    except PermissionError:  # root's child has become nobody, and this user may not signal it as a group
        process.kill()
    process.wait()
    if process.stdin is not None:
        process.stdin.close()


def _reason(code: int, output: str) -> str:
    if code < 0:
        return f"killed by {signal.Signals(-code).name}"
    lines = output.strip().splitlines()
    return lines[-1] if lines else f"left early with exit code {code}"
