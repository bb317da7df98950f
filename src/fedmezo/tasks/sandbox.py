"""Runs a program that a model wrote, apart from everything else, and lets tests that it cannot reach judge it.

Two processes: the answer's runs what the model wrote, and the judge's holds the tests and calls the answer's function
over a pipe on which only plain values travel (`caged/`). The verdict is the judge's exit code; the answer neither
knows the judge nor can signal it, so it can pass by giving right values alone.

Each is in a cage: no network, no other processes, no file but Python's own and the system's libraries (none of which
it can write), an empty folder that vanishes with it, no capabilities, and limits on time, memory and files. Cages are
made by bubblewrap (`bwrap`) or by util-linux (`unshare`), whichever works here; root's processes become nobody. Where
neither does, what is left is said by `lacking`. This is no prison for an attack on the kernel: that is what a virtual
machine is for.
"""

from __future__ import annotations

import json
import logging
import os
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path
from typing import BinaryIO

from fedmezo.errors import RunError
from fedmezo.plain import one_line
from fedmezo.scratch import scratch_folder
from fedmezo.tasks.caged.judge import PASSED

logger = logging.getLogger(__name__)

_PACKAGE = Path(__file__).parents[1]
_SYSTEM = ("/usr", "/lib", "/lib64", "/bin", "/etc/ld.so.cache")
_PLACE = "/answer"
"""In a cage, the folder that can be written."""
_NOBODY = "65534"
_WITHOUT_RIGHTS = ("--no-new-privs", "--bounding-set=-all", "--inh-caps=-all")
# A new root in memory: what is needed is bound into it and cannot be written, and its one open folder is empty.
_NEW_ROOT = """
set -e
mount -t tmpfs -o mode=755,size=1m cage "$1"
cd "$1"
shift
while [ "$1" != -- ]; do
  if [ -d "$1" ]; then mkdir -p ".$1"; else mkdir -p ".$(dirname "$1")"; : > ".$1"; fi
  mount --bind "$1" ".$1"
  mount -o remount,bind,ro ".$1"
  shift
done
shift
mkdir -p answer
mount -t tmpfs -o mode=1777,size=16m cage answer
mount -o remount,bind,ro .
chroot . /usr/bin/env --chdir=/answer "$@"
"""


@dataclass(frozen=True, slots=True)
class Limits:
    """What a program may use."""

    seconds: float = 10.0
    memory_bytes: int = 1 << 30
    file_bytes: int = 1 << 20


@dataclass(frozen=True, slots=True)
class Program:
    """What is run, and what it is judged by.

    Args:
        answer: what the model wrote, a whole program.
        tests: raises unless the answer is right; without any, an answer passes that reaches its end.
        entry_point: the answer's function, which the tests call by this name.
        helpers: what else the tests call: the task as it was put to the model, for the functions that it gives.
    """

    answer: str
    tests: str = ""
    entry_point: str = ""
    helpers: str = ""


@dataclass(frozen=True, slots=True)
class Verdict:
    """How a program ended."""

    passed: bool
    reason: str  # the last line of its error, or what stopped it; empty if it passed


@dataclass(frozen=True, slots=True)
class Cage:
    """A way to keep a process apart.

    Args:
        name: what makes it.
        words: the command that runs another one inside, given the folder it may use.
        lacking: what a process can still do in it; empty if it is whole.
    """

    name: str
    words: Callable[[str], list[str]]
    lacking: str = ""


def run_program(program: Program | str, limits: Limits, cage: Cage | None = None) -> Verdict:
    """Run a Python program and judge it.

    Args:
        program: with its tests; a text alone is an answer without any.
        limits: of the answer and of the judge, each.
        cage: to run it in; None for the best that works here.

    Raises:
        OSError: no process can be started.
    """
    program = Program(program) if isinstance(program, str) else program
    cage = cage or best_cage()
    with ExitStack() as stack:
        said, found = (stack.enter_context(tempfile.TemporaryFile()) for _ in range(2))
        with ExitStack() as pipes:  # closed here once both have them, so that each sees when the other ends
            to_answer, to_judge = (_pipe(pipes) for _ in range(2))
            answer = _start(stack, cage, "answer", limits, (to_answer[0], to_judge[1]), said)
            judge = _start(stack, cage, "judge", limits, (to_judge[0], to_answer[1]), found)
        try:
            judge.communicate(json.dumps(asdict(program)).encode(), timeout=limits.seconds)
            if judge.returncode == PASSED:
                return Verdict(True, "")
            fault = _last_line(found)
            if fault.startswith("EOFError: the other side"):
                fault = _ending(answer.wait(limits.seconds), _last_line(said))
        except subprocess.TimeoutExpired:
            return Verdict(False, f"stopped after {limits.seconds:g} s")
        return Verdict(False, one_line(fault) or "its tests ended early")


def require_sandbox() -> None:
    """Make sure that a good program passes and a bad one does not, and say what cannot be kept from it here.

    Raises:
        RunError: the sandbox does not work on this machine, so every answer would fail.
    """
    cage = best_cage()
    good, bad = (
        run_program(Program(f"def double(x):\n    return {factor} * x\n", "assert double(2) == 4", "double"), Limits())
        for factor in (2, 3)
    )
    if not good.passed or bad.passed:
        raise RunError(f"the sandbox for model-written code does not work on this machine: {good.reason}")
    if cage.lacking:
        logger.warning("model-written code runs in a weak sandbox: %s", cage.lacking)


@cache
def best_cage() -> Cage:
    """The first kind of cage in which a program runs here."""
    for cage in _cages():
        if run_program("import math", Limits(), cage).passed:
            return cage
    return _BARE


def _cages() -> Sequence[Cage]:
    """Those that this system has the programs for. Root's `bwrap` would leave the process root's."""
    found = []
    if os.geteuid() != 0 and shutil.which("bwrap"):
        found.append(Cage("bwrap", _bubblewrap))
    if shutil.which("unshare") and shutil.which("setpriv"):
        found.append(Cage("unshare", _unshare))
    return found


def _bubblewrap(_folder: str) -> list[str]:
    words = [
        shutil.which("bwrap") or "bwrap",
        "--unshare-all",
        "--die-with-parent",
        "--new-session",
        "--cap-drop",
        "ALL",
    ]
    words += ["--uid", _NOBODY, "--gid", _NOBODY]
    for path in _visible():
        words += ["--ro-bind", path, path]
    return [*words, "--tmpfs", _PLACE, "--chdir", _PLACE, "--"]


def _unshare(folder: str) -> list[str]:
    root = os.geteuid() == 0
    user = ["--reuid", _NOBODY, "--regid", _NOBODY, "--clear-groups"] if root else []
    apart = ["--net", "--ipc", "--uts", "--mount", "--pid", "--fork", "--kill-child=KILL"]
    words = [shutil.which("unshare") or "unshare", *([] if root else ["--user", "--map-root-user"]), *apart, "--"]
    words += ["sh", "-c", _NEW_ROOT, "cage", folder, *_visible(), "--"]
    return [*words, "setpriv", *user, *_WITHOUT_RIGHTS, "--"]


_BARE = Cage(
    "limits alone",
    lambda folder: [],
    "neither bwrap (bubblewrap) nor unshare (util-linux) makes namespaces here, so that it can see and signal "
    "processes of the user it runs as, reach Unix sockets, read what that user can read and leave files in shared "
    "folders; install bubblewrap, or run this in a container or a virtual machine",
)


def _visible() -> list[str]:
    """The files and folders that Python needs, none within another."""
    wanted = [*_SYSTEM, sys.base_prefix, str(_PACKAGE)]
    paths = [path for path in dict.fromkeys(wanted) if os.path.exists(path)]
    return [path for path in paths if not any(path.startswith(f"{other}/") for other in paths)]


def _start(
    stack: ExitStack, cage: Cage, role: str, limits: Limits, channel: tuple[int, int], output: BinaryIO
) -> subprocess.Popen[bytes]:
    """Start the answer's process, whose channel is its standard input and output, or the judge's."""
    folder = str(stack.enter_context(scratch_folder()))
    os.chmod(folder, 0o777)  # root becomes nobody in it
    start = f"import sys; sys.path.append({str(_PACKAGE.parent)!r}); import fedmezo.tasks.caged.{role} as r; r.main()"
    words = [*cage.words(folder), os.path.realpath(sys.executable), "-I", "-S", "-B", "-c", start]
    words += [str(limits.seconds), str(limits.memory_bytes), str(limits.file_bytes)]
    place = folder if cage.lacking else _PLACE
    is_answer = role == "answer"
    process = subprocess.Popen(
        words if is_answer else [*words, *map(str, channel)],
        stdin=channel[0] if is_answer else subprocess.PIPE,
        stdout=channel[1] if is_answer else output,
        stderr=output,
        pass_fds=() if is_answer else channel,
        cwd=folder,
        env={"PATH": "/usr/sbin:/usr/bin:/sbin:/bin", "HOME": place, "TMPDIR": place},
        start_new_session=True,
    )
    stack.callback(_end, process)
    return process


def _pipe(stack: ExitStack) -> tuple[int, int]:
    """Where to read and where to write, until the stack is left."""
    ends = os.pipe()
    for end in ends:
        stack.callback(os.close, end)
    return ends


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


def _last_line(output: BinaryIO) -> str:
    output.seek(0)
    lines = output.read().decode(errors="replace").strip().splitlines()
    return lines[-1] if lines else ""


def _ending(code: int, said: str) -> str:
    """How the answer's process ended without being asked; a shell gives a signal as 128 and its number."""
    number = -code if code < 0 else code - 128
    if number > 0:
        return f"killed by {signal.Signals(number).name}" if number in {*signal.Signals} else f"exit code {code}"
    return said if code else f"left early with exit code {code}"
