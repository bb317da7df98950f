"""A process that must not outlive the one that started it, however that one ends."""

from __future__ import annotations

import os
import threading
import time

_SECONDS_BETWEEN_LOOKS = 0.5


def exit_with_parent() -> None:
    """End this process at once when its parent has ended. (The kernel's own signal follows the parent's thread.)"""
    parent = os.getppid()
    threading.Thread(target=_watch, args=(parent,), name="parent watch", daemon=True).start()


def _watch(parent: int) -> None:
    while os.getppid() == parent:
        time.sleep(_SECONDS_BETWEEN_LOOKS)
    os._exit(1)
