"""Calibration data: any iterable of what the model is called with, streamed, and refused where it is at fault."""

from __future__ import annotations

import operator
from collections.abc import Iterable, Iterator, Mapping
from itertools import islice
from typing import Any

from torch import Tensor

from tersor.ir.errors import CalibrationError, InputError, SignatureError
from tersor.ir.program import Program

KEPT = 16
"""How many batches are kept for passes that read the data after it has been consumed."""


class Replay:
    """Batches that several passes read, whatever they come from.

    What can be read again, as a list or a DataLoader, is. Of what can be read once, as a generator, the first `keep`
    batches are kept: whoever comes after the first full reading gets those. So memory does not grow with the data.
    """

    def __init__(self, batches: Iterable[Any], keep: int = KEPT) -> None:
        _refuse_one_batch(batches)
        self._batches = batches
        self._keep = keep
        self._kept: list[Any] = []
        self._length = operator.length_hint(batches, -1)
        source = iter(batches)
        self._once: Iterator[Any] | None = source if source is batches else None
        self._again = source is not batches

    def first(self, count: int) -> list[Any]:
        """The first `count` batches, or as many as there are; no more than are kept."""
        if self._again:
            return list(islice(iter(self._batches), count))
        wanted = min(count, self._keep) - len(self._kept)
        if self._once is not None and wanted > 0:
            self._kept += islice(self._once, wanted)
        return self._kept[:count]

    def __iter__(self) -> Iterator[Any]:
        if self._again:
            yield from iter(self._batches)
            return
        yield from tuple(self._kept)
        source, self._once = self._once, None
        for batch in source or ():
            if len(self._kept) < self._keep:
                self._kept.append(batch)
            yield batch

    def __length_hint__(self) -> int:
        return max(self._length, 0)

    def __str__(self) -> str:
        return "calibration batches"


def first_batches(batches: Iterable[Any], count: int) -> list[Any]:
    """The first batches, without consuming the others of a `Replay`."""
    return batches.first(count) if isinstance(batches, Replay) else list(islice(batches, count))


def flat_inputs(program: Program, batches: Iterable[Any]) -> Iterator[list[Tensor]]:
    """Each batch as flat inputs, on the program's device wherever the data is.

    A batch is a tensor, a tuple or list of positional inputs, or a mapping of keyword inputs: a dict, a tokenizer's
    BatchEncoding.

    Raises CalibrationError, with its index, where one does not fit the program.
    """
    for index, batch in enumerate(batches):
        named = dict(batch) if isinstance(batch, Mapping) else {}
        args = () if isinstance(batch, Mapping) else tuple(batch) if isinstance(batch, tuple | list) else (batch,)
        try:
            yield [tensor.to(program.device) for tensor in program.signature.flatten(args, named)]
        except SignatureError as error:
            raise CalibrationError(
                f"calibration batch {index} does not fit: {error.what}",
                expected=error.expected,
                found=error.found,
                hint=error.hint if isinstance(error, InputError) else _how_to_nest(program, batch, args),
            ) from error


def _refuse_one_batch(batches: object) -> None:
    """One batch in place of a collection of them would be read row by row, or key by key."""
    single = isinstance(batches, Tensor | Mapping | str)
    if not single and isinstance(batches, Iterable):
        return
    again = "call it: calibration=batches()" if callable(batches) else "give several batches, or [batch] for one"
    raise CalibrationError(
        "calibration data is not a collection of batches",
        expected="a list, a DataLoader, a generator: anything that gives one batch after another",
        found=type(batches).__name__,
        hint=again,
    )


def _how_to_nest(program: Program, batch: Any, args: tuple[Any, ...]) -> str:
    """What to do about a batch that has not the inputs of the program."""
    signature = program.signature
    names = tuple(dict.fromkeys((*signature.parameters, *signature.kwargs.keys)))
    if isinstance(batch, Mapping):
        wanted = {spec.name for spec in signature.inputs}
        strange = [str(key) for key in batch if key not in names]
        missing = [name for name in names if name in wanted and name not in batch]
        parts = [f"leave out {', '.join(strange)}"] if strange else []
        parts += [f"give {', '.join(missing)}"] if missing else []
        return " and ".join(parts) if parts else _USE
    others = [type(value).__name__ for value in args if not isinstance(value, Tensor)]
    if others:
        return f"give tensors in place of {others[0]}"
    if len(args) > len(signature.inputs):
        return f"give the {len(signature.inputs)} inputs alone, without labels, as [image for image, label in loader]"
    return _USE


_USE = "a batch is what the model is called with, no labels: a tensor, a tuple, or a dict by keyword"


def required(program: Program, batches: Iterable[Any] | None, count: int | None = None) -> Iterator[list[Tensor]]:
    """Flat inputs of all batches, or of the first `count`. Raises CalibrationError where there are none."""
    if batches is None:
        raise CalibrationError(
            "calibration data is missing", hint="Quantize(calibration=batches), or --data MODULE:FUNCTION"
        )
    _refuse_one_batch(batches)
    empty = True
    for inputs in flat_inputs(program, batches if count is None else first_batches(batches, count)):
        empty = False
        yield inputs
    if empty:
        raise CalibrationError(
            "calibration data is empty",
            expected="at least one batch",
            found="none",
            hint="a generator gives its batches once: make it anew, or give a list or a DataLoader",
        )


def length(batches: Iterable[Any]) -> int | None:
    """How many batches there are, where that is known."""
    return operator.length_hint(batches) or None
