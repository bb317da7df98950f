"""A base model whose layers are read from the disk in each forward pass: for models larger than memory.

Embedding, head and what else stands alone stay in memory. Of the repeated layers, nearly all of a model, two are there
at a time: the one that computes, and the next, which is read meanwhile. A pass reads each layer once for all its lanes.
The losses are those of the model in memory, to the bit. On a GPU layers come through host memory, where the system
keeps what it has room for of the files.
"""

from __future__ import annotations

import ctypes
import tempfile
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from fedmezo.errors import ModelError
from fedmezo.models.checkpoint import OpenFile, Place, append
from fedmezo.models.hollow import hollow_model, placeholder, places_of, saved_tensors
from fedmezo.models.quantised import NONE, Quantiser

_ALIGNMENT = 64
"""Bytes; PyTorch's own on a CPU."""

_M_MMAP_THRESHOLD = -3
"""Of malloc.h."""
_LARGE_BLOCK = 1 << 20


def load_streamed(
    folder: Path, dtype: torch.dtype, device: torch.device, *, quantization: str = NONE, own_code: bool = False
) -> PreTrainedModel:
    """A frozen base model that reads its layers in each forward pass; at no time are two of them in memory before.

    Layers that the checkpoint has in another precision, or not quantised as wanted, are written in the wanted form to a
    file without a name in the temporary directory (`TMPDIR`), which goes with the process.

    Args:
        folder: a checkpoint in safetensors.
        dtype: precision of the weights.
        device: where the model computes.
        quantization: one of `models.quantised.SCHEMES`.
        own_code: see `loading.load_base`.

    Raises:
        ModelError: the checkpoint is none in safetensors or damaged, the model has no repeated layers, or cannot be
            quantised.
    """
    _give_back_what_is_freed()
    model = hollow_model(folder, dtype, own_code)
    places = places_of(model, folder)
    layers = _repeated_layers(model)
    alone = _ids_outside(model, layers)
    by_id = {id(tensor): places[name] for name, tensor in saved_tensors(model)}
    quantise = None if quantization == NONE else Quantiser(model, quantization)
    stream = Stream(device)
    for layer in layers:
        tensors = _tensors_of(layer, alone)
        found = [by_id[id(tensor)] for tensor in tensors]
        if quantise or any(place.dtype != tensor.dtype for place, tensor in zip(found, tensors, strict=True)):
            _fill(tensors, found)
            if quantise:
                quantise(layer)
            tensors = _tensors_of(layer, alone)
            found = stream.written(tensors)
        stream.add(layer, tensors, found)
    outside = [tensor for _, tensor in saved_tensors(model) if id(tensor) in alone]
    _fill(outside, [by_id[id(tensor)] for tensor in outside])
    if quantise:
        quantise(model)  # what is left of it
    stream.move_the_rest(model)
    model.fedmezo_stream = stream  # type: ignore[assignment]  # nn.Module declares tensors and modules only
    return model


def stream_of(base: nn.Module) -> Stream | None:
    """What reads the layers of a model; None where they are all in memory."""
    found: Any = getattr(base, "fedmezo_stream", None)
    return found if isinstance(found, Stream) else None


class Stream:
    """Reads the layers of a model, one ahead of the one that computes.

    Copies of the model that share its tensors share the stream: only one of them may compute at a time.

    Args:
        device: where the model computes.
        staged: whether layers come through host memory; None: where the device has a memory of its own.
    """

    def __init__(self, device: torch.device, staged: bool | None = None) -> None:
        self._device = device
        self._staged = device.type != "cpu" if staged is None else staged
        self._layers: list[_Layer] = []
        self._places: dict[int, Place] = {}  # by the tensor's id; the layers hold the tensors
        self._reader = ThreadPoolExecutor(1, thread_name_prefix="fedmezo-layers")
        self._file: OpenFile | None = None
        self._slots: list[_Slot] = []
        self._shown: tuple[_Layer, _Slot] | None = None
        self._coming: tuple[_Layer, _Slot, Future[None]] | None = None

    def __deepcopy__(self, memo: dict[int, object]) -> Stream:
        return self

    def written(self, tensors: Sequence[Tensor]) -> list[Place]:
        """The places of tensors that are written to the temporary directory.

        Raises:
            ModelError: there is no room.
        """
        try:
            if self._file is None:
                self._file = OpenFile.unnamed()
            return [append(self._file, tensor) for tensor in tensors]
        except OSError as error:
            where = tempfile.gettempdir()
            raise ModelError(
                f"model.streamed: {where} has no room for the layers as they are wanted ({error.strerror}): let TMPDIR "
                "name a folder on a larger disk, or leave model.dtype and model.quantization as the checkpoint is"
            ) from error

    def add(self, layer: nn.Module, tensors: Sequence[Tensor], places: Sequence[Place]) -> None:
        """Read these tensors of a layer, the model's next, whenever it is called."""
        added = _Layer(tensors, places, in_place=not self._staged)
        self._layers.append(added)
        self._places.update((id(tensor), place) for tensor, place in zip(tensors, places, strict=True))
        added.hide(self._device)
        number = len(self._layers) - 1
        layer.register_forward_pre_hook(partial(self._enter, number))
        layer.register_forward_hook(partial(self._leave, number))

    def content(self, tensor: Tensor) -> Tensor:
        """A tensor of the model with its values, read if it is one of a layer."""
        place = self._places.get(id(tensor))
        return tensor if place is None else place.read()

    def move_the_rest(self, model: nn.Module) -> None:
        """Bring all other tensors of the model to the device."""
        for tensor in (*model.parameters(), *model.buffers()):
            if id(tensor) not in self._places:
                tensor.data = tensor.data.to(self._device)

    def _enter(self, number: int, _module: nn.Module, _inputs: object) -> None:
        if torch.is_grad_enabled():
            raise ModelError("model.streamed: gradients need all layers in memory; only losses can be computed")
        self._hide()
        if self._coming is None or self._coming[0] is not self._layers[number]:
            self._ask_for(number)
        assert self._coming is not None
        (layer, slot, reading), self._coming = self._coming, None
        reading.result()
        layer.show(slot.octets)
        self._shown = layer, slot
        self._ask_for((number + 1) % len(self._layers))  # after the last the first, for the next pass

    def _leave(self, _number: int, _module: nn.Module, _inputs: object, _outputs: object) -> None:
        self._hide()

    def _hide(self) -> None:
        if self._shown is not None:
            layer, slot = self._shown
            layer.hide(self._device)
            slot.release()
            self._shown = None

    def _ask_for(self, number: int) -> None:
        """Have a layer read into the slot that is not shown."""
        if self._coming is not None:
            self._coming[2].exception()  # another one than was expected: wait until its slot is free
        if not self._slots:
            size = max(layer.size for layer in self._layers)
            with torch.inference_mode(mode=False):
                self._slots = [_Slot(size, self._device, self._staged) for _ in range(2)]
        slot = self._slots[1 if self._shown is not None and self._shown[1] is self._slots[0] else 0]
        layer = self._layers[number]
        self._coming = layer, slot, self._reader.submit(slot.fill, layer)


class _Layer:
    """The tensors of a layer, where they are on the disk, and where in a slot.

    With `in_place` they are as far from a multiple of 64 bytes as in their file, since transformers uses a file's
    content where it is mapped, and the last bits of a product may depend on it.
    """

    def __init__(self, tensors: Sequence[Tensor], places: Sequence[Place], in_place: bool) -> None:
        self.tensors = tensors
        self.places = places
        self.offsets: list[int] = []
        end = 0
        for place in places:
            start = -(-end // _ALIGNMENT) * _ALIGNMENT
            rest = place.start % _ALIGNMENT if in_place else 0
            self.offsets.append(start + (0 if rest % place.dtype.itemsize else rest))
            end = self.offsets[-1] + place.size
        self.size = end

    def parts(self, octets: Tensor) -> Iterator[Tensor]:
        """The part of a slot that is each tensor's, as bytes."""
        for place, offset in zip(self.places, self.offsets, strict=True):
            yield octets[offset : offset + place.size]

    def show(self, octets: Tensor) -> None:
        """Let the tensors be those in a slot."""
        for tensor, place, part in zip(self.tensors, self.places, self.parts(octets), strict=True):
            tensor.data = part.view(place.dtype).view(place.shape)

    def hide(self, device: torch.device) -> None:
        """Let the tensors have no values."""
        for tensor in self.tensors:
            tensor.data = placeholder(tensor, device)


class _Slot:
    """Room for one layer where the model computes, and in host memory where that is elsewhere."""

    def __init__(self, size: int, device: torch.device, staged: bool) -> None:
        is_gpu = device.type == "cuda"
        self.octets = torch.empty(size, dtype=torch.uint8, device=device)
        self._host = torch.empty(size, dtype=torch.uint8, pin_memory=is_gpu) if staged else self.octets
        self._copies = torch.cuda.Stream(device) if is_gpu else None  # type: ignore[no-untyped-call]  # no annotations
        self._computed: Any = None  # on a GPU, the event after which nothing reads the slot any more

    def fill(self, layer: _Layer) -> None:
        """Read a layer: the work of the reading thread."""
        for place, part in zip(layer.places, layer.parts(self._host), strict=True):
            place.read_into(part)
        if self._copies is not None:
            with torch.cuda.stream(self._copies):
                if self._computed is not None:
                    self._copies.wait_event(self._computed)
                self.octets.copy_(self._host, non_blocking=True)
            self._copies.synchronize()
        elif self._host is not self.octets:
            self.octets.copy_(self._host)

    def release(self) -> None:
        """What was asked of the device so far is the last to read the slot."""
        if self._copies is not None:
            self._computed = torch.cuda.current_stream(self.octets.device).record_event()


def _give_back_what_is_freed() -> None:
    """Have glibc return large blocks to the system when they are freed.

    By default it begins to keep them once it has seen them freed, and the gaps between what is kept add up: to half of
    a model when its layers are quantised one by one.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)  # other C libraries have none
    if mallopt is not None:
        mallopt(_M_MMAP_THRESHOLD, _LARGE_BLOCK)


def _repeated_layers(model: PreTrainedModel) -> list[nn.Module]:
    """The layers of the largest stack."""
    stacks = [list(module) for module in model.modules() if isinstance(module, nn.ModuleList) and len(module) > 1]
    if not stacks:
        raise ModelError(f"model.streamed: {type(model).__name__} is not made of repeated layers: leave it out")
    return max(stacks, key=lambda stack: sum(p.numel() for layer in stack for p in layer.parameters()))


def _ids_outside(model: PreTrainedModel, layers: Sequence[nn.Module]) -> set[int]:
    """Of the tensors that are used outside the layers, be it inside as well."""
    inside = {id(module) for layer in layers for module in layer.modules()}
    others = [module for module in model.modules() if id(module) not in inside]
    return {id(t) for module in others for t in (*module.parameters(recurse=False), *module.buffers(recurse=False))}


def _tensors_of(layer: nn.Module, outside: set[int]) -> list[Tensor]:
    return [tensor for _, tensor in saved_tensors(layer) if id(tensor) not in outside]


def _fill(tensors: Sequence[Tensor], places: Sequence[Place]) -> None:
    for tensor, place in zip(tensors, places, strict=True):
        tensor.data = place.read().to(tensor.dtype)
