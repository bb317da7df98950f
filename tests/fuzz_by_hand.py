"""Three thousand hostile files of each kind and thirty thousand hostile messages; python -m tests.fuzz_by_hand.

    python -m tests.fuzz_by_hand [FILES] [MESSAGES] [SEED] [KIND ...]

Each is read as a command reads it: it may be taken or refused by one of our own errors, within 5 s of processor time
and with less than 1 GiB more memory than before. Anything else is printed with the number that makes it again.
"""

from __future__ import annotations

import logging
import random
import resource
import signal
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from types import FrameType

from fedmezo.errors import FedMeZOError
from tests.hostile import Kind, file_kinds
from tests.hostile_messages import MessageKind, message_kinds

SECONDS = 5.0
BYTES = 1 << 30


class TooLong(BaseException):
    """Beyond the limit of time."""


def main(files: int = 3000, messages: int = 30_000, seed: int = 0, *, only: Sequence[str] = ()) -> int:
    """Returns 1 if anything was neither taken nor refused.

    Args:
        files: of each kind.
        messages: of all kinds together.
        seed: of what is made.
        only: names of kinds; all where none is given.
    """
    wrong = 0
    logging.disable()  # a notice for each
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for kind in (kind for kind in file_kinds(folder) if not only or kind.name in only):
            wrong += fuzz(kind.name, files, seed, partial(_read_file, kind))
            kind.place.write_bytes(kind.content)
        kinds = message_kinds(folder)
        for message in (kind for kind in kinds if not only or kind.name in only):
            wrong += fuzz(message.name, messages // len(kinds), seed, partial(_read_message, message))
    return int(wrong > 0)


def _read_file(kind: Kind, rng: random.Random) -> str:
    kind.place.write_bytes(kind.mutated(rng))
    return outcome_of(kind.read)


def _read_message(kind: MessageKind, rng: random.Random) -> str:
    return outcome_of(partial(kind.read, kind.mutated(rng)), (ConnectionError,))  # of a frame: who reads it hangs up


def fuzz(name: str, count: int, seed: int, read: Callable[[random.Random], str]) -> int:
    """Read so many things of a kind; returns how many were neither taken nor refused."""
    outcomes: Counter[str] = Counter()
    slowest = 0.0
    with limited_memory():
        for number in range(count):
            started = time.process_time()
            outcome = read(random.Random(f"{seed} {name} {number}"))
            slowest = max(slowest, time.process_time() - started)
            outcomes[outcome.partition(":")[0]] += 1
            if outcome not in ("taken", "refused"):
                print(f"{name} {number}: {outcome}", flush=True)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss >> 10
    print(f"{name}: {dict(outcomes)}; slowest {slowest:.2f} s; peak of the process {peak} MiB", flush=True)
    return outcomes.total() - outcomes["taken"] - outcomes["refused"]


def outcome_of(read: Callable[[], object], refusals: tuple[type[Exception], ...] = ()) -> str:
    """`taken`, `refused` (by one of our own errors, or one of those that were given), or what went wrong."""
    signal.setitimer(signal.ITIMER_PROF, SECONDS)
    try:
        return "refused" if read() == FedMeZOError.exit_code else "taken"
    except FedMeZOError as error:
        lines = str(error).splitlines()
        return "refused" if error.exit_code == 2 and lines else f"odd refusal: {error!r}"
    except refusals:
        return "refused"
    except TooLong:
        return "too long"
    except BaseException as error:  # noqa: BLE001 - whatever it is, it is what is looked for
        last = error.__traceback__
        while last is not None and last.tb_next is not None:
            last = last.tb_next
        where = f"{last.tb_frame.f_code.co_filename}:{last.tb_lineno}" if last else "nowhere"
        return f"{type(error).__name__}: {str(error)[:200]!r} at {where}"
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)


@contextmanager
def limited_memory() -> Iterator[None]:
    """Allow this process 1 GiB more than it has."""
    size = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (size + BYTES, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, (soft, hard))


def _too_long(_number: int, _frame: FrameType | None) -> None:
    raise TooLong


signal.signal(signal.SIGPROF, _too_long)

if __name__ == "__main__":
    sys.exit(main(*map(int, sys.argv[1:4]), only=sys.argv[4:]))
