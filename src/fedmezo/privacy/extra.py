"""What is known of private runs without the libraries that they need, and whether these are there."""

from __future__ import annotations

from importlib.util import find_spec

from fedmezo.errors import ConfigError

SMALLEST_GROUP = 3
"""Clients of a secure sum: of two, each would know the other's part."""

WRAPPED = b"FMZG"
"""What a task begins with whose report is to be masked."""

LIBRARIES = {"cryptography": "cryptography", "Crypto": "pycryptodome", "opacus": "opacus"}
"""Packages by the name of what is imported."""


def require_extra(key: str) -> None:
    """See that the extra is installed.

    Raises:
        ConfigError: it is not.
    """
    if missing := [package for module, package in LIBRARIES.items() if find_spec(module) is None]:
        raise ConfigError(f"{key} needs {' and '.join(missing)}, which is not here: pip install 'fedmezo[privacy]'")
