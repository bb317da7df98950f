"""The suite on a busy machine, again and again; by hand: python -m tests.busy_by_hand [TIMES] [pytest's arguments].

Two processes that never rest run beside it. Says of each time how long it took, and stops at the first that fails.
"""

from __future__ import annotations

import subprocess
import sys
import time
from contextlib import ExitStack

BUSY_LOOPS = 2


def main(times: int, arguments: list[str]) -> int:
    """Returns pytest's exit code."""
    with ExitStack() as stack:
        for _ in range(BUSY_LOOPS):
            loop = stack.enter_context(subprocess.Popen([sys.executable, "-c", "while True: pass"]))
            stack.callback(loop.kill)
        for number in range(1, times + 1):
            started = time.monotonic()
            code = subprocess.run([sys.executable, "-m", "pytest", *arguments]).returncode
            print(f"time {number} of {times}: exit code {code} after {time.monotonic() - started:.0f} s", flush=True)
            if code:
                return code
    return 0


if __name__ == "__main__":
    sys.exit(main(int(sys.argv[1]) if len(sys.argv) > 1 else 10, sys.argv[2:]))
