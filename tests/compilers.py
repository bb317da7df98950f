"""Machines with a C++ compiler and without one, for tests of what is compiled and of what happens then."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
import torch
from torch._inductor import config
from torch._inductor.utils import fresh_cache

needs_compiler = pytest.mark.skipif(
    shutil.which(os.environ.get("CXX", "g++")) is None, reason="there is no C++ compiler (g++, or what CXX names)"
)


@contextmanager
def without_compiler() -> Iterator[None]:
    """As on a machine that has none, and with nothing compiled earlier."""
    torch._dynamo.reset()
    with config.patch({"cpp.cxx": (None, "/no/such/compiler")}), fresh_cache():
        yield
    torch._dynamo.reset()
