"""The hash that tells whether two machines hold the same base weights."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from hashlib import sha256

import torch
from torch import Tensor, nn

_BYTES_AT_ONCE = 1 << 26


def base_hash(base: nn.Module) -> str:
    """SHA-256 over the name, dtype, shape and content of every saved tensor of a base model, in the order of names.

    Call it before an adapter is attached, since that renames the tensors. Tied tensors count once, under the name that
    the model lists first. Buffers that are not saved (they follow from the model's config) are left out. Tensors are
    hashed side by side and their digests then hashed together: hashing leaves Python's lock.
    """
    tensors = sorted(_saved_tensors(base))
    with ThreadPoolExecutor() as pool:
        digests = pool.map(_content_hash, (tensor for _, tensor in tensors))
        whole = sha256()
        for (name, tensor), digest in zip(tensors, digests, strict=True):
            whole.update(f"{name} {tensor.dtype} {tuple(tensor.shape)} {digest}\n".encode())
    return whole.hexdigest()


def _saved_tensors(module: nn.Module) -> Iterator[tuple[str, Tensor]]:
    saved = module.state_dict().keys()
    for name, tensor in (*module.named_parameters(), *module.named_buffers()):
        if name in saved:
            yield name, tensor.detach()


def _content_hash(tensor: Tensor) -> str:
    digest = sha256()
    octets = tensor.contiguous().flatten().view(torch.uint8)
    for part in torch.split(octets, _BYTES_AT_ONCE):
        digest.update(part.cpu().numpy().data)
    return digest.hexdigest()
