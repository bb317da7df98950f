"""The inside of the sandbox: gives up rights, then runs the program that arrives on standard input.

Standard input holds a secret word on the first line, the program on the others. The word is printed only when the
program has come to its end, so a program that leaves early does not count as passed. Uses the standard library alone.
"""

import ctypes
import importlib
import os
import resource
import sys

CLONE_NEWUSER, CLONE_NEWNET = 0x10000000, 0x40000000
NOBODY = 65534
PRELOADED = (
    "bisect", "collections", "copy", "datetime", "decimal", "fractions", "functools", "hashlib", "heapq", "itertools",
    "json", "math", "operator", "random", "re", "statistics", "string", "time", "typing",
)  # fmt: skip
"""What answers import: nobody may be unable to read the library of a Python that is installed for root alone."""


def limit(seconds: float, memory_bytes: int, file_bytes: int) -> None:
    """Bound what this process may use from here on."""
    whole = int(seconds) + 1
    bounds = {
        resource.RLIMIT_CPU: whole,
        resource.RLIMIT_AS: memory_bytes,
        resource.RLIMIT_FSIZE: file_bytes,
        resource.RLIMIT_NOFILE: 32,
        resource.RLIMIT_CORE: 0,
        resource.RLIMIT_NPROC: 0,
    }
    for which, bound in bounds.items():
        resource.setrlimit(which, (bound, bound))


def leave(flags: int) -> bool:
    """Move to a network (and user) namespace of its own, where there is no network; the kernel may refuse."""
    unshare = getattr(ctypes.CDLL(None), "unshare", None)
    return unshare is not None and unshare(flags) == 0


def leave_root() -> None:
    """Become nobody, where this is root."""
    if os.geteuid() == 0:
        os.setgroups([])
        os.setgid(NOBODY)
        os.setuid(NOBODY)


def main() -> None:
    """Run the program under the limits of the command line: seconds, bytes of memory, bytes of a file."""
    word, source = sys.stdin.read().split("\n", 1)
    for module in PRELOADED:
        importlib.import_module(module)
    alone = leave(CLONE_NEWNET)  # root may
    leave_root()
    if not alone:
        leave(CLONE_NEWUSER | CLONE_NEWNET)  # anybody may, on most systems
    limit(float(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]))
    exec(compile(source, "<answer>", "exec"), {"__name__": "__main__"})  # the point of this file
    sys.stdout.write("\n" + word)
    sys.stdout.flush()


if __name__ == "__main__":
    main()
