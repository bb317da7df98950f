"""Masks over whole numbers: words that look random alone and cancel out, or can be taken away, in a sum.

A mask is the key stream of ChaCha20 under a key that is used for nothing else, read as 64-bit words. All sums are
modulo 2^64; a word that is sent in fewer bytes is summed modulo that many.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from cryptography.hazmat.primitives.ciphers import Cipher
from cryptography.hazmat.primitives.ciphers.algorithms import ChaCha20
from numpy.typing import NDArray

from fedmezo.privacy.keys import BreachError

WORD_BYTES = 8

Words = NDArray[np.int64]
"""(words,) signed 64-bit words."""


def mask(key: bytes, words: int) -> Words:
    """So many words that nobody can tell from random ones without the key of 32 bytes."""
    stream = Cipher(ChaCha20(key, bytes(16)), mode=None).encryptor().update(bytes(WORD_BYTES * words))
    return np.frombuffer(stream, dtype="<i8").astype(np.int64)


def pack(words: Words, widths: Sequence[int]) -> bytes:
    """The lowest bytes of each word, as many as `widths` says, little-endian."""
    return words.astype("<i8").view(np.uint8).reshape(-1, WORD_BYTES)[_taken(widths)].tobytes()


def unpack(data: bytes, widths: Sequence[int]) -> Words:
    """The inverse of `pack`: signed words, right where each fits its width.

    Raises:
        BreachError: another number of bytes.
    """
    if len(data) != sum(widths):
        raise BreachError(f"{len(data)} bytes are not the {sum(widths)} of {len(widths)} words")
    octets = np.zeros((len(widths), WORD_BYTES), np.uint8)
    octets[_taken(widths)] = np.frombuffer(data, np.uint8)
    words = octets.reshape(-1).view("<i8").astype(np.int64)
    unused = 8 * (WORD_BYTES - np.array(widths, np.int64))
    return np.right_shift(np.left_shift(words, unused), unused)


def _taken(widths: Sequence[int]) -> NDArray[np.bool_]:
    return np.arange(WORD_BYTES) < np.array(widths)[:, None]
