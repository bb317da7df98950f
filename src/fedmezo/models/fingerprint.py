"""The hash that tells whether two machines hold the same base weights."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from hashlib import sha256
from operator import itemgetter

import torch
from torch import Tensor, nn

from fedmezo.models.quantised import NONE, scheme_of
from fedmezo.models.streamed import stream_of

_BYTES_AT_ONCE = 1 << 26

_WORKERS_ON_A_STREAM = 2
"""One reads while the other hashes: each holds a whole tensor."""


def base_hash(base: nn.Module) -> str:
    """SHA-256 over the name, dtype, shape and content of every saved tensor of a base model, in the order of names.

    That of a quantised model is over its quantised weights, and begins with the scheme: the same weights are another
    function where activations are rounded too.

    Call it before an adapter is attached, since that renames the tensors. Tied tensors count once, under the name that
    the model lists first. Buffers that are not saved (they follow from the model's config) are left out. Tensors are
    hashed side by side and their digests then hashed together: hashing leaves Python's lock.
    """
    tensors = sorted(_saved_tensors(base), key=itemgetter(0))
    stream = stream_of(base)

    def digest_of(tensor: Tensor) -> str:
        return _content_hash(tensor if stream is None else stream.content(tensor))

    with ThreadPoolExecutor(None if stream is None else _WORKERS_ON_A_STREAM) as pool:
        digests = pool.map(digest_of, (tensor for _, tensor in tensors))
        scheme = scheme_of(base)
        whole = sha256() if scheme == NONE else sha256(f"{scheme}\n".encode())
        for (name, tensor), digest in zip(tensors, digests, strict=True):
            whole.update(f"{name} {tensor.dtype} {tuple(tensor.shape)} {digest}\n".encode())
    return whole.hexdigest()


def _saved_tensors(module: nn.Module) -> Iterator[tuple[str, Tensor]]:
    saved = module.state_dict()
    for name, tensor in (*module.named_parameters(), *module.named_buffers()):
        if name in saved:
            yield name, tensor
    known = {name for name, _ in _with_repeats(module)}
    for name in saved.keys() - known:  # scales that a quantised checkpoint's layers keep beside their tensors
        if isinstance(saved[name], Tensor):
            yield name, saved[name]


def _with_repeats(module: nn.Module) -> Iterator[tuple[str, Tensor]]:
    yield from module.named_parameters(remove_duplicate=False)
    yield from module.named_buffers(remove_duplicate=False)


def _content_hash(tensor: Tensor) -> str:
    digest = sha256()
    octets = tensor.detach().contiguous().flatten().view(torch.uint8)
    for part in torch.split(octets, _BYTES_AT_ONCE):
        digest.update(part.cpu().numpy().data)
    return digest.hexdigest()
