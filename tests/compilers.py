"""A machine without a C++ compiler, for tests of what happens then."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch._inductor import config
from torch._inductor.utils import fresh_cache


@contextmanager
def without_compiler() -> Iterator[None]:
    """As on a machine that has none, and with nothing compiled earlier."""
    torch._dynamo.reset()
    with config.patch({"cpp.cxx": (None, "/no/such/compiler")}), fresh_cache():
        yield
    torch._dynamo.reset()
