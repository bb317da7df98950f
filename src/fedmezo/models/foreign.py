"""Code that is not ours: models of other people, in forms that they were perhaps not written for."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TypeVar

from fedmezo.errors import FedMeZOError, ModelError

logger = logging.getLogger(__name__)

T = TypeVar("T")

LONGEST_REASON = 400
_LIST_OF_ALL_MODELS = "Model type should be one of"


def attempt(work: Callable[[], T]) -> T | None:
    """What the work gives; None where it fails, in whatever way: nobody knows all that such code can raise."""
    try:
        return work()
    except Exception as error:  # noqa: BLE001 - see above; whoever asks has another way
        logger.debug("an attempt failed: %s", brief(error))
        return None


@contextmanager
def explained(what: str) -> Iterator[None]:
    """Whatever the block raises becomes one ModelError that says what failed and, in short, why."""
    try:
        yield
    except FedMeZOError:
        raise
    except Exception as error:
        raise ModelError(f"{what}: {brief(error)}") from error


def brief(error: Exception) -> str:
    """An error's own words on one line, without a list of everything else there is; its kind where they need it."""
    words = " ".join(str(error).partition(_LIST_OF_ALL_MODELS)[0].split())
    if len(words) > LONGEST_REASON:
        words = words[:LONGEST_REASON] + " ..."
    plain = isinstance(error, ValueError | OSError | ImportError) and len(words.split()) > 1
    return words if plain else f"{type(error).__name__}: {words}".removesuffix(": ")
