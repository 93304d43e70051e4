"""Computing at import what is known at import."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from .values import Known

_LARGEST = 1 << 20
"""Results of more elements than this, and than twice the inputs, are left to run time: a file may ask for any size."""


def foldable(target: Any, values: Sequence[Any]) -> bool:
    """Whether an operator's result depends on known values alone. Quantization is kept for passes to see."""
    if not isinstance(target, torch._ops.OpOverload) or target.namespace != "aten":
        return False
    return all(isinstance(v, Known) for v in values) and torch.Tag.nondeterministic_seeded not in target.tags


def evaluate(target: Any, args: Any, kwargs: Any) -> Any:
    """The operator's result as Known, a tuple of them where it gives several; None where it would be too large."""
    inputs: list[Known] = []
    real_args, real_kwargs = _tensors((args, kwargs), inputs)
    budget = max(_LARGEST, 2 * sum(known.tensor.numel() for known in inputs))
    if _elements(target, args, kwargs) > budget:
        return None
    with torch.no_grad():
        result = target(*real_args, **real_kwargs)
    trainable = any(known.trainable for known in inputs)
    return _known(result, trainable)


def _elements(target: Any, args: Any, kwargs: Any) -> int:
    """The size of the result, from sizes alone; 0 where it depends on data, and is then no larger than the inputs."""
    meta_args, meta_kwargs = _on_meta((args, kwargs))
    if _creates(target):
        meta_kwargs = {**meta_kwargs, "device": "meta"}
    try:
        result = target(*meta_args, **meta_kwargs)
    except (NotImplementedError, RuntimeError):
        return 0
    results = result if isinstance(result, tuple | list) else (result,)
    return sum(item.numel() for item in results if isinstance(item, Tensor))


def _creates(target: Any) -> bool:
    return any(argument.name == "device" for argument in target._schema.arguments)


def _tensors(tree: Any, found: list[Known]) -> Any:
    if isinstance(tree, Known):
        found.append(tree)
        return tree.tensor
    if isinstance(tree, tuple | list):
        return type(tree)(_tensors(item, found) for item in tree)
    if isinstance(tree, dict):
        return {key: _tensors(item, found) for key, item in tree.items()}
    return tree


def _on_meta(tree: Any) -> Any:
    if isinstance(tree, Known):
        return torch.empty_like(tree.tensor, device="meta")
    if isinstance(tree, tuple | list):
        return type(tree)(_on_meta(item) for item in tree)
    if isinstance(tree, dict):
        return {key: _on_meta(item) for key, item in tree.items()}
    return tree


def _known(result: Any, trainable: bool) -> Any:
    if isinstance(result, Tensor):
        return Known(result, trainable=trainable and result.is_floating_point())
    if isinstance(result, tuple | list):
        return tuple(_known(item, trainable) for item in result)
    return result
