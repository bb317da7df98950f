"""Where each tensor of a safetensors checkpoint is on the disk, so that one can be read without the others."""

from __future__ import annotations

import json
import math
import os
import tempfile
import weakref
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import torch
from torch import Tensor

from fedmezo.errors import ModelError

_ONE_FILE: Final = "model.safetensors"
_INDEX: Final = "model.safetensors.index.json"
_LENGTH_BYTES = 8
_ALIGNMENT = 64
_LONGEST_HEADER = 100_000_000
"""What the format allows."""

_DTYPES = {
    "F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16, "I64": torch.int64,
    "I32": torch.int32, "I16": torch.int16, "I8": torch.int8, "U8": torch.uint8, "BOOL": torch.bool,
}  # fmt: skip


class OpenFile:
    """A file for as long as anything refers to it; what else becomes of its name does not matter.

    Args:
        descriptor: of the system, closed at the end.
        name: to speak of it.
    """

    def __init__(self, descriptor: int, name: str) -> None:
        self.descriptor = descriptor
        self.name = name
        weakref.finalize(self, os.close, descriptor)

    @classmethod
    def at(cls, path: Path) -> OpenFile:
        """One that is there, to be read."""
        return cls(os.open(path, os.O_RDONLY), str(path))

    @classmethod
    def unnamed(cls) -> OpenFile:
        """A new one in the temporary directory (`TMPDIR`), which goes with the process, however that ends."""
        with tempfile.TemporaryFile() as file:
            return cls(os.dup(file.fileno()), f"a file in {tempfile.gettempdir()}")

    @property
    def size(self) -> int:
        """Bytes."""
        return os.fstat(self.descriptor).st_size

    def read_into(self, target: memoryview, start: int) -> None:
        """Fill `target` with what begins at the byte `start`; other threads go on meanwhile.

        The file is read, not mapped: what is mapped counts as memory of the process where its address space is limited,
        and stays in memory until the system needs the room.

        Raises:
            OSError: it cannot be read.
            EOFError: it is too short.
        """
        while target:
            count = os.preadv(self.descriptor, [target], start)
            if not count:
                raise EOFError(f"it ends at {start}")
            target, start = target[count:], start + count


@dataclass(frozen=True, slots=True)
class Place:
    """A tensor in an open file."""

    file: OpenFile
    start: int  # in bytes
    dtype: torch.dtype
    shape: tuple[int, ...]

    @property
    def size(self) -> int:
        """Bytes."""
        return math.prod(self.shape) * self.dtype.itemsize

    def read(self) -> Tensor:
        """The tensor, in memory of its own."""
        octets = torch.empty(self.size, dtype=torch.uint8)
        self.read_into(octets)
        return octets.view(self.dtype).view(self.shape)

    def read_into(self, octets: Tensor) -> None:
        """Fill `octets`, (size,) uint8 on the host.

        Raises:
            ModelError: the file is shorter than it was, or cannot be read.
        """
        try:
            self.file.read_into(_bytes_of(octets), self.start)
        except OSError as error:
            raise ModelError(f"{self.file.name}: the weights cannot be read: {error.strerror}") from error
        except EOFError as error:
            raise ModelError(f"{self.file.name} ends before its weights do: it has been cut, copy it again") from error


def stored_tensors(folder: Path) -> dict[str, Place]:
    """The place of every tensor of the checkpoint in a folder, by the name that it has there.

    Raises:
        ModelError: there is no safetensors checkpoint, or a file of it is damaged or missing.
    """
    found: dict[str, Place] = {}
    for path in _files(folder):
        try:
            found |= _places(OpenFile.at(path))
        except OSError as error:
            raise ModelError(f"{path}: the weights cannot be read: {error.strerror}") from error
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError, EOFError) as error:
            raise ModelError(f"{path}: the file is damaged or cut ({error})") from error
    return found


def append(file: OpenFile, tensor: Tensor) -> Place:
    """Write a tensor to the end of a file.

    Raises:
        OSError: there is no room.
    """
    start = end = -(-file.size // _ALIGNMENT) * _ALIGNMENT
    rest = _bytes_of(tensor.detach().contiguous().flatten().view(torch.uint8))
    while rest:
        count = os.pwrite(file.descriptor, rest, end)
        rest, end = rest[count:], end + count
    return Place(file, start, tensor.dtype, tuple(tensor.shape))


def _files(folder: Path) -> list[Path]:
    if (folder / _ONE_FILE).is_file():
        return [folder / _ONE_FILE]
    try:
        names = json.loads((folder / _INDEX).read_text(encoding="utf-8"))["weight_map"].values()
        return [folder / Path(name).name for name in sorted(set(names))]
    except FileNotFoundError as error:
        raise ModelError(f"{folder} has no weights as safetensors ({_ONE_FILE} or {_INDEX})") from error
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise ModelError(f"{folder / _INDEX} is damaged ({error})") from error


def _places(file: OpenFile) -> dict[str, Place]:
    """By the file's header: the length of a JSON text, the text, and the tensors' bytes."""
    length = int.from_bytes(_read(file, 0, _LENGTH_BYTES), "little")
    if not 0 < length <= min(_LONGEST_HEADER, file.size):
        raise ValueError(f"a header of {length} bytes")
    header: dict[str, Any] = json.loads(_read(file, _LENGTH_BYTES, length))
    header.pop("__metadata__", None)
    found = {}
    for name, entry in header.items():
        if entry["dtype"] not in _DTYPES:
            raise ModelError(f"{file.name}: {name} is stored as {entry['dtype']}, which is not supported")
        first, last = (_LENGTH_BYTES + length + int(offset) for offset in entry["data_offsets"])
        place = Place(file, first, _DTYPES[entry["dtype"]], tuple(int(n) for n in entry["shape"]))
        if min(place.shape, default=1) < 0 or first + place.size != last or not length < first <= last <= file.size:
            raise ValueError(f"{name} does not fit the file")
        found[name] = place
    return found


def _read(file: OpenFile, start: int, length: int) -> bytes:
    octets = bytearray(length)
    file.read_into(memoryview(octets), start)
    return bytes(octets)


def _bytes_of(octets: Tensor) -> memoryview:
    array: Any = octets.numpy()  # which is a buffer, whatever its annotations say
    return memoryview(array)
