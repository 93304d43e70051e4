"""Calibration data: any iterable of what the model is called with, streamed, and refused where it is at fault."""

from __future__ import annotations

import operator
from collections.abc import Iterable, Iterator, Mapping
from itertools import islice
from typing import Any

import torch
from torch import Tensor, fx, nn

from tersor.ir.errors import CalibrationError, SignatureError
from tersor.ir.program import Program

from ..compare import node_values

KEPT = 16
"""How many batches are kept for passes that read the data after it has been consumed."""


class Replay:
    """Batches that several passes read, whatever they come from.

    What can be read again, as a list or a DataLoader, is. Of what can be read once, as a generator, the first `keep`
    batches are kept: whoever comes after the first full reading gets those. So memory does not grow with the data.
    """

    def __init__(self, batches: Iterable[Any], keep: int = KEPT) -> None:
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
    """Each batch as flat inputs.

    A batch is a tensor, a tuple or list of positional inputs, or a mapping of keyword inputs: a dict, a tokenizer's
    BatchEncoding.

    Raises CalibrationError, with its index, where one does not fit the program.
    """
    for index, batch in enumerate(batches):
        named = dict(batch) if isinstance(batch, Mapping) else {}
        args = () if isinstance(batch, Mapping) else tuple(batch) if isinstance(batch, tuple | list) else (batch,)
        try:
            yield program.signature.flatten(args, named)
        except SignatureError as error:
            raise CalibrationError(
                f"calibration batch {index} does not fit: {error.what}",
                expected=error.expected,
                found=error.found,
                hint="a batch is what the model is called with, no labels: a tensor, a tuple, or a dict by keyword",
            ) from error


def required(program: Program, batches: Iterable[Any] | None, count: int | None = None) -> Iterator[list[Tensor]]:
    """Flat inputs of all batches, or of the first `count`. Raises CalibrationError where there are none."""
    if batches is None:
        raise CalibrationError("calibration data is missing", hint="give batches=..., or Quantize(calibration=batches)")
    empty = True
    for inputs in flat_inputs(program, batches if count is None else first_batches(batches, count)):
        empty = False
        yield inputs
    if empty:
        raise CalibrationError("calibration data is empty", expected="at least one batch", found="none")


def length(batches: Iterable[Any]) -> int | None:
    """How many batches there are, where that is known."""
    return operator.length_hint(batches) or None


def first_unfinite(program: Program, inputs: list[Tensor]) -> fx.Node | None:
    """The first node whose value holds NaN or infinity; None where none does.

    Minus infinity in what is no parameter is how attention masks are written, and passes.
    """
    found: list[fx.Node] = []

    def visit(node: fx.Node, value: Any) -> None:
        if not found and isinstance(value, Tensor) and value.is_floating_point() and _is_bad(value):
            found.append(node)

    node_values(program, inputs, visit)
    return found[0] if found else None


def _is_bad(value: Tensor) -> bool:
    bad = torch.isnan(value) | (value == torch.inf)
    if isinstance(value, nn.Parameter):
        bad |= value == -torch.inf
    return bool(bad.any())


def refuse_unfinite(program: Program, inputs: list[Tensor], error: CalibrationError) -> CalibrationError:
    """The error about a value that is not finite, with the node where the first such value appears."""
    node = first_unfinite(program, inputs)
    if node is None:
        return error
    where = "a weight" if node.op == "get_attr" else "an input" if node.op == "placeholder" else "a value"
    return CalibrationError(
        f"{error.what}: {where} is not finite", node=node, found=error.found, hint="it first appears at this node"
    )
