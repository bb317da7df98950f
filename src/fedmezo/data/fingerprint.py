"""Hashes that tell whether two runs train on the same data, divided the same way."""

from __future__ import annotations

from hashlib import sha256

from fedmezo.data.encode import EncodedDataset
from fedmezo.data.partition import Partition


def dataset_hash(dataset: EncodedDataset) -> str:
    """SHA-256 of the encoded examples: their tokens, where each starts, and which are its answer's."""
    digest = sha256(f"{len(dataset)} {dataset.pad_id}\n".encode())
    digest.update(dataset.offsets.astype("<i8", copy=False).tobytes())
    digest.update(dataset.prompt_lengths.astype("<i4", copy=False).tobytes())
    digest.update(dataset.tokens.astype("<i4", copy=False).tobytes())
    digest.update(dataset.skipped.astype("<i8", copy=False).tobytes())  # most have none
    return digest.hexdigest()


def partition_hash(partition: Partition) -> str:
    """SHA-256 of who holds which examples, and of what category they are."""
    return sha256(partition.to_json().encode()).hexdigest()
