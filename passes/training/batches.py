"""Batches: what the program is called with, and what the loss takes besides its outputs."""

from __future__ import annotations

import operator
import zlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from tersor.ir.errors import InputError, SignatureError, TrainingError
from tersor.ir.program import Program

_USE = "a batch is (what the program is called with ..., what the loss takes ...), or a dict of both"


@dataclass(frozen=True)
class Split:
    """A batch as the arguments of the program, and those of the loss after the outputs."""

    args: tuple[Any, ...]
    kwargs: Mapping[str, Any]
    targets: tuple[Any, ...]
    named_targets: Mapping[str, Any]

    def inputs(self, program: Program) -> list[Tensor]:
        """The flat inputs of the program. Raises TrainingError where they do not fit."""
        try:
            return program.signature.flatten(self.args, self.kwargs)
        except SignatureError as error:
            raise TrainingError(
                f"a batch does not fit the program: {error.what}",
                expected=error.expected,
                found=error.found,
                hint=error.hint if isinstance(error, InputError) else _USE,
            ) from error


def split(program: Program, batch: Any) -> Split:
    """Take a batch apart, and move its tensors to where the program is.

    A tuple or list: the program's positional inputs come first, and the loss takes the rest: `(images, labels)`. Where
    the first item is a dict, it is the program's keyword inputs. A dict: the program takes the entries that have the
    names of its inputs, the loss takes the others by name. A tensor is the program's one input.
    """
    signature = program.signature
    batch = moved(batch, program.device)
    if isinstance(batch, Mapping):
        known = {*signature.parameters, *signature.kwargs.keys}
        taken = {key: value for key, value in batch.items() if key in known}
        return Split((), taken, (), {key: value for key, value in batch.items() if key not in known})
    if not isinstance(batch, tuple | list):
        return Split((batch,), {}, (), {})
    if batch and isinstance(batch[0], Mapping) and not _takes_mapping(program):
        return Split((), dict(batch[0]), tuple(batch[1:]), {})
    count = len(signature.args.children) or len(signature.inputs)
    return Split(tuple(batch[:count]), {}, tuple(batch[count:]), {})


def _takes_mapping(program: Program) -> bool:
    children = program.signature.args.children
    return bool(children) and children[0].kind in ("dict", "record")


@dataclass(frozen=True)
class ModelInputs:
    """Training batches without what only the loss takes: what calibration reads."""

    program: Program
    batches: Iterable[Any]
    count: int | None = None

    def __iter__(self) -> Iterator[Any]:
        for index, batch in enumerate(self.batches):
            if index == self.count:
                return
            parts = split(self.program, batch)
            yield dict(parts.kwargs) if parts.kwargs else parts.args

    def __str__(self) -> str:
        return "training batches"


class ShuffledBatches:
    """Mini-batches of tensors held in memory, in another order each time they are read.

    tensors: of one length; a batch is a tuple of as many slices, or a tensor where there is one.
    size: rows a batch; the last one is smaller, or left out where `drop_last`.

    The order is drawn from torch's generator, so the loop's seed decides it.
    """

    def __init__(self, *tensors: Tensor, size: int, drop_last: bool = False) -> None:
        rows = {len(tensor) for tensor in tensors}
        if len(rows) != 1 or 0 in rows or size < 1:
            found = f"{[tuple(tensor.shape) for tensor in tensors]}, size {size}"
            raise TrainingError("not batches", expected="tensors of one length >= 1, and size >= 1", found=found)
        self.tensors, self.size, self.drop_last = tensors, size, drop_last

    def __len__(self) -> int:
        rows = len(self.tensors[0])
        return rows // self.size if self.drop_last else -(-rows // self.size)

    def __iter__(self) -> Iterator[Any]:
        order = torch.randperm(len(self.tensors[0]))
        for chosen in order.split(self.size)[: len(self)]:
            batch = tuple(tensor[chosen] for tensor in self.tensors)
            yield batch if len(batch) > 1 else batch[0]


def require_again(batches: Iterable[Any], what: str = "training data") -> None:
    """Raises TrainingError where the batches can be read only once, or not at all."""
    hint = "give a list, a DataLoader, or an object whose __iter__ begins again"
    if not isinstance(batches, Iterable):
        raise TrainingError(f"{what} cannot be iterated", found=type(batches).__name__, hint=hint)
    if isinstance(batches, Iterator):
        raise TrainingError(f"{what} can be read only once", found=f"a {type(batches).__name__}", hint=hint)


def length(batches: Iterable[Any]) -> int | None:
    """How many batches there are, where the iterable says."""
    try:
        hinted = operator.length_hint(batches, -1)
    except TypeError:  # a DataLoader over an iterable data set has a __len__ that raises
        return None
    return hinted if hinted >= 0 else None


def tensors_of(batch: Any) -> Iterator[Tensor]:
    """Every tensor of a nested batch, in order."""
    if isinstance(batch, Tensor):
        yield batch
    elif isinstance(batch, Mapping):
        for value in batch.values():
            yield from tensors_of(value)
    elif isinstance(batch, Sequence) and not isinstance(batch, str | bytes):
        for value in batch:
            yield from tensors_of(value)


def moved(batch: Any, device: torch.device) -> Any:
    """The batch with every tensor on a device; itself where they are there."""
    if all(tensor.device == device for tensor in tensors_of(batch)):
        return batch
    if isinstance(batch, Tensor):
        return batch.to(device)
    if isinstance(batch, Mapping):
        return {key: moved(value, device) for key, value in batch.items()}
    if isinstance(batch, tuple | list):
        values = [moved(value, device) for value in batch]
        return values if isinstance(batch, list) else tuple(values)
    return batch


def rows(batch: Any) -> int:
    """How many rows a batch has: the first size of its first tensor."""
    first = next(tensors_of(batch), None)
    return first.shape[0] if first is not None and first.dim() else 1


def digest(batch: Any) -> int:
    """A checksum of a batch's tensors."""
    found = 0
    for tensor in tensors_of(batch):
        plain = tensor.detach().cpu().contiguous().reshape(-1)
        found = zlib.crc32(plain.view(torch.uint8).numpy().data, found) if plain.numel() else found
    return found
