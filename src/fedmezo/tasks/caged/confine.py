"""What a process of the sandbox gives up before it runs code that is not ours."""

import ctypes
import importlib
import os
import resource
import sys
from contextlib import suppress

CLONE_NEWUSER, CLONE_NEWNET = 0x10000000, 0x40000000
PR_SET_DUMPABLE, PR_SET_NO_NEW_PRIVS = 4, 38
NOBODY = 65534
PRELOADED = (
    "bisect", "collections", "copy", "datetime", "decimal", "fractions", "functools", "hashlib", "heapq", "itertools",
    "json", "math", "operator", "random", "re", "statistics", "string", "time", "typing",
)  # fmt: skip
"""What answers import: nobody may be unable to read the library of a Python that is installed for root alone."""


def confine(seconds: float, memory_bytes: int, file_bytes: int) -> None:
    """Give up rights, where that was not done from outside, and bound what this process may use from here on."""
    for module in PRELOADED:
        importlib.import_module(module)
    sys.set_int_max_str_digits(0)
    alone = _leave(CLONE_NEWNET)  # root may
    if os.geteuid() == 0:
        with suppress(PermissionError):  # root by name alone, in a cage that took its rights
            os.setgroups([])
            os.setgid(NOBODY)
            os.setuid(NOBODY)
    if not alone:
        _leave(CLONE_NEWUSER | CLONE_NEWNET)  # anybody may, on most systems
    libc = ctypes.CDLL(None)
    libc.prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)
    libc.prctl(PR_SET_DUMPABLE, 0, 0, 0, 0)  # no other process of this user can look into it
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


def _leave(flags: int) -> bool:
    """Move to a network (and user) namespace of its own, where there is no network; the kernel may refuse."""
    unshare = getattr(ctypes.CDLL(None), "unshare", None)
    return unshare is not None and unshare(flags) == 0
