"""Model-written code is run apart from everything else, and judged by tests that it cannot reach."""

from __future__ import annotations

import os
import socket
from pathlib import Path

import pytest

from fedmezo.records import Example
from fedmezo.tasks.humaneval import program
from fedmezo.tasks.sandbox import Cage, Limits, Program, best_cage, require_sandbox, run_program

# Without the module socket, which the sandbox's user may be unable to read where Python belongs to root.
CONNECT = """
import ctypes
libc = ctypes.CDLL(None)
address = (2).to_bytes(2, "little") + ({port}).to_bytes(2, "big") + bytes([127, 0, 0, 1]) + bytes(8)
if libc.connect(libc.socket(2, 1, 0), address, len(address)) != 0:
    raise OSError("unreachable")
"""

LIMITS = Limits(seconds=120.0)  # on however busy a machine

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


def test_no_network() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        verdict = run_program(CONNECT.format(port=server.getsockname()[1]), LIMITS)
    if best_cage().lacking and verdict.passed:
        pytest.skip("this kernel gives ordinary users no network namespace")
    assert verdict.reason == "OSError: unreachable"


CHEATS = {
    "reads every frame for a secret": """
    import sys
    frame = sys._getframe()
    while frame:
        print(dict(frame.f_globals), dict(frame.f_locals))
        frame = frame.f_back
    raise SystemExit(70)""",
    "leaves with the judge's exit code": """
    import os
    os._exit(70)""",
    "a result that equals everything": """
    class Same:
        __eq__ = lambda self, other: True
    return Same()""",
    "a number that equals everything": """
    class Same(int):
        __eq__ = lambda self, other: True
    return Same(1)""",
    "tests that are replaced": """
    import builtins, sys
    sys.modules["__main__"].check = lambda candidate: None
    builtins.AssertionError = ValueError
    return 0""",
    "messages that nobody asked for": """
    import os
    for end in range(3, 32):
        try:
            os.write(end, b'{"passed": true}\\n')
        except OSError:
            pass
    return 0""",
    "an exception that would end the judge": """
    raise type("SystemExit", (Exception,), {})(70)""",
    "a value that never ends": """
    return [list(range(10 ** 6)) for _ in range(10 ** 6)]""",
    "a value too deep to read": """
    value = []
    for _ in range(10 ** 5):
        value = [value]
    return value""",
}
"""Bodies of `add`, all of them wrong."""


@pytest.mark.parametrize("body", CHEATS.values(), ids=CHEATS)
def test_the_verdict_is_not_in_the_answers_hands(body: str) -> None:
    verdict = run_program(program(PROBLEM, body), LIMITS)
    assert not verdict.passed
    assert verdict.reason


def test_tests_that_leave_early_do_not_pass() -> None:
    assert not run_program(Program("x = 1\n", tests="raise SystemExit(0)"), LIMITS).passed


def test_tests_may_call_what_the_task_gave() -> None:
    task = 'def twice(x):\n    return 2 * x\n\n\ndef four_times(x):\n    """Four times."""\n'
    tests = "def check(candidate):\n    assert candidate(3) == twice(twice(3)) == four_times(x=3)\n"
    assert run_program(program(Example(task, "four_times", tests, "Local/1"), "    return 4 * x\n"), LIMITS).passed


VALUES = r"""None, True, 10**5000, 0.1, float("inf"), "\x1b\ud800", b"\xff", 2j, (1, [2]), {1: {"a": ()}, (3,): {4}}"""


def test_plain_values_come_and_go_as_they_are() -> None:
    tests = f"for value in ({VALUES}):\n    there = same(value)\n"
    tests += "    assert there == value and type(there) is type(value), value\n"
    verdict = run_program(Program("def same(x):\n    return x\n", tests, "same"), LIMITS)
    assert verdict.passed, verdict.reason


def attempts_on(folder: Path) -> list[str]:
    """Statements that succeed where something of ours can be reached."""
    address = (1).to_bytes(2, "little") + str(folder / "socket").encode().ljust(108, b"\0")
    return [
        f"open({str(folder / 'secret')!r}).read()",
        "open('/etc/passwd').read()",
        *(f"open('{place}/left behind', 'w')" for place in ("/dev/shm", "/var/tmp", "/usr", "", str(folder))),
        *(f"os.kill({pid}, 0)" for pid in (os.getpid(), os.getppid())),
        f"s = ctypes.CDLL(None); assert s.connect(s.socket(1, 1, 0), {address!r}, 110) == 0",
        "assert ctypes.CDLL(None).unshare(0x10000000) == 0",  # a user namespace, in which it would be root
    ]


def test_no_file_no_socket_and_no_process_of_ours_can_be_reached(tmp_path: Path) -> None:
    if best_cage().lacking:
        pytest.skip(best_cage().lacking)
    (tmp_path / "secret").write_text("secret")
    source = "import ctypes, os\nreached = []\n"
    for attempt in attempts_on(tmp_path):
        source += f"try:\n    {attempt}\n    reached.append({attempt!r})\nexcept (OSError, AssertionError):\n    pass\n"
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(tmp_path / "socket"))
        server.listen()
        verdict = run_program(f"{source}open('left here', 'w')\nassert not reached, reached", LIMITS)
    assert verdict.passed, verdict.reason


@pytest.mark.parametrize("victim", ["-1", "os.getppid()"])
def test_signals_reach_nobody_else(victim: str) -> None:
    if best_cage().lacking:
        pytest.skip(best_cage().lacking)
    assert not run_program(program(PROBLEM, f"    import os\n    os.kill({victim}, 9)\n"), LIMITS).passed


def test_without_namespaces_limits_are_left_and_the_verdict_stands() -> None:
    bare = Cage("limits alone", lambda folder: [], "no namespaces")
    assert run_program(program(PROBLEM, "    return a + b\n"), LIMITS, bare).passed
    for body in ("    return a - b\n", "    import os\n    os._exit(70)\n", "    return bytearray(1 << 34)\n"):
        assert not run_program(program(PROBLEM, body), LIMITS, bare).passed
