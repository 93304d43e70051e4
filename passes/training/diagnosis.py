"""Which tensor is the first that is not finite, once a loss is not."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, fx

from tersor.ir.errors import TrainingError
from tersor.ir.program import Program

from ..compare import node_values
from .batches import split


def first_bad_tensor(program: Program, batch: Any, trained: Mapping[str, Tensor]) -> TrainingError | None:
    """Looks at the batch, then the parameters, then every node in order; None where all are finite.

    Minus infinity and values beyond 1e30 that the graph makes on purpose, as attention masks are, do not count.
    """
    parts = split(program, batch)
    inputs = parts.inputs(program)
    for name, tensor in _given(program, inputs, parts.targets):
        if tensor.is_floating_point() and not bool(torch.isfinite(tensor).all()):
            hint = "leave such samples out, or mend them: one of them makes every weight not a number"
            found = f"{_count(tensor)} in {name}"
            return TrainingError("the batch is not finite", expected="finite data", found=found, hint=hint)
    for name, tensor in trained.items():
        if not bool(torch.isfinite(tensor).all()):
            hint = "a lower learning_rate, or clip_norm"
            return TrainingError("a parameter is not finite", found=f"{_count(tensor)} in {name}", hint=hint)
    bad: list[tuple[fx.Node, Tensor]] = []

    def visit(node: fx.Node, value: Any) -> None:
        if not bad and isinstance(value, Tensor) and value.is_floating_point() and _is_bad(value):
            bad.append((node, value))

    node_values(program, inputs, visit)
    if not bad:
        return None
    node, value = bad[0]
    return TrainingError(
        "the first tensor that is not finite",
        node=node,
        found=f"{_count(value)} in %{node.name}",
        hint="keep what this operator reads within what it is defined for, in the model; where it was fine in earlier "
        "steps, a lower learning_rate, or clip_norm",
    )


def _given(program: Program, inputs: list[Tensor], targets: tuple[Any, ...]) -> list[tuple[str, Tensor]]:
    named = [(f"input {spec.name!r}", value) for spec, value in zip(program.signature.inputs, inputs, strict=True)]
    return named + [(f"target {index}", value) for index, value in enumerate(targets) if isinstance(value, Tensor)]


def _is_bad(value: Tensor) -> bool:
    return bool((torch.isnan(value) | (value == torch.inf)).any())


def _count(tensor: Tensor) -> str:
    bad = ~torch.isfinite(tensor)
    return f"{int(bad.sum())} of {tensor.numel()} values"
