"""Model-written code is run apart from everything else, and only reaching its end counts."""

from __future__ import annotations

import os
import socket
from pathlib import Path

import pytest

from fedmezo.records import Example
from fedmezo.tasks.humaneval import program
from fedmezo.tasks.sandbox import Limits, require_sandbox, run_program

# Without the module socket, which the sandbox's user may be unable to read where Python belongs to root.
CONNECT = """
import ctypes
libc = ctypes.CDLL(None)
address = (2).to_bytes(2, "little") + ({port}).to_bytes(2, "big") + bytes([127, 0, 0, 1]) + bytes(8)
if libc.connect(libc.socket(2, 1, 0), address, len(address)) != 0:
    raise OSError("unreachable")
"""

LIMITS = Limits(seconds=5.0)

PROBLEM = Example(
    instruction='def add(a: int, b: int) -> int:\n    """Add."""\n',
    input="add",
    output="def check(candidate):\n    assert candidate(2, 3) == 5\n",
    category="Local/0",
)


def test_the_sandbox_works_here() -> None:
    require_sandbox()


def test_a_right_and_a_wrong_completion() -> None:
    assert run_program(program(PROBLEM, "    return a + b\n"), LIMITS).passed
    verdict = run_program(program(PROBLEM, "    return a - b\n"), LIMITS)
    assert (verdict.passed, verdict.reason) == (False, "AssertionError")


@pytest.mark.parametrize(
    ("source", "reason"),
    [
        ("raise SystemExit(0)", "exit code 0"),
        ("import os\nos._exit(0)", "exit code 0"),
        ("bytearray(1 << 34)", "MemoryError"),
        ("open('big', 'wb').write(bytes(1 << 22))", "File too large"),
        ("import os\nos.fork()", "Resource temporarily unavailable"),
        ("def", "SyntaxError"),
        ("import os\nos.kill(os.getpid(), 9)", "SIGKILL"),
    ],
)
def test_what_does_not_pass(source: str, reason: str) -> None:
    verdict = run_program(source, LIMITS)
    assert not verdict.passed
    assert reason in verdict.reason


def test_an_endless_program_is_stopped() -> None:
    verdict = run_program("while True: pass", Limits(seconds=0.5))
    assert (verdict.passed, verdict.reason) == (False, "stopped after 0.5 s")


def test_flooding_the_output_does_not_flood_memory() -> None:
    assert not run_program("while True: print('x' * 1000)", LIMITS).passed


def test_a_program_is_in_a_folder_of_its_own(tmp_path: Path) -> None:
    assert run_program("import os\nassert os.listdir() == []\nopen('mine', 'w').write('x')", LIMITS).passed
    assert "HOME" in run_program("import os\nassert False, ' '.join(sorted(os.environ))", LIMITS).reason


def test_no_network_where_the_kernel_lets_it_be_taken_away() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        ours = os.readlink("/proc/self/ns/net")
        if not run_program(f"import os\nassert os.readlink('/proc/self/ns/net') != {ours!r}", LIMITS).passed:
            pytest.skip("this kernel gives ordinary users no network namespace")
        verdict = run_program(CONNECT.format(port=port), LIMITS)
        assert verdict.reason == "OSError: unreachable"
