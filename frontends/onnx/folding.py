"""Computing at import what is known at import."""

from __future__ import annotations

from collections.abc import Sequence
from math import prod
from typing import Any

import torch
from torch import Tensor

from tersor.ir.errors import TraceError

from .budget import MOST_AXES, Budget
from .values import Known

aten = torch.ops.aten

PICKS = frozenset({aten.embedding.default, aten.expand.default, aten.index.Tensor, aten.repeat.default})
"""Operators that repeat items of a parameter or look them up: a copy of the items would be trained in its place."""

_PRODUCTS = ("adaptive", "avg_pool", "bmm", "conv", "einsum", "linear", "matmul", "max_pool", "mm", "scaled_dot")
"""Beginnings of the names of operators that may take time, and memory between, by the product of the sizes given."""
_MOST_PRODUCTS = 1 << 26
_WORK = 4
"""Of one operator on small tensors."""


def foldable(target: Any, values: Sequence[Any]) -> bool:
    """Whether an operator's result depends on known values alone. Quantization is kept for passes to see."""
    if not isinstance(target, torch._ops.OpOverload) or target.namespace != "aten":
        return False
    return all(isinstance(v, Known) for v in values) and torch.Tag.nondeterministic_seeded not in target.tags


def evaluate(target: Any, args: Any, kwargs: Any, budget: Budget) -> Any:
    """The operator's result as Known, a tuple of them where it gives several; None where it would take too much.

    What is too much is left to run time. Raises TraceError where the result cannot be.
    """
    inputs: list[Known] = []
    real_args, real_kwargs = _tensors((args, kwargs), inputs)
    results = _results(target, args, kwargs)
    if any(result.dim() > MOST_AXES for result in results):
        raise TraceError("a tensor has too many axes", expected=f"at most {MOST_AXES}")
    if not _affordable(target, [known.tensor for known in inputs], results, budget):
        return None
    _refuse_overflow(target, real_args, real_kwargs)
    with torch.no_grad():
        result = target(*real_args, **real_kwargs)
    trainable = any(known.trainable for known in inputs)
    return _known(result, trainable)


def _affordable(target: Any, inputs: Sequence[Tensor], results: Sequence[Tensor], budget: Budget) -> bool:
    """Whether memory and time for it are left, which are taken."""
    given, made = [tensor.numel() for tensor in inputs], sum(result.numel() for result in results)
    work = _WORK + (sum(given) >> 16)
    if target._schema.name.removeprefix("aten::").lstrip("_").startswith(_PRODUCTS):
        products = max(prod(given), sum(given) * made)
        if products > _MOST_PRODUCTS:
            return False
        work += products >> 12
    budget.spend(work)
    if not budget.affords(made, sum(result.numel() * result.itemsize for result in results)):
        return False
    budget.spend(made >> 16)
    return True


def _refuse_overflow(target: Any, args: Sequence[Any], kwargs: Any) -> None:
    """The least integer by -1 ends the process, as the quotient is beyond the type."""
    if target is not aten.div.Tensor_mode or kwargs.get("rounding_mode") != "trunc":
        return
    dtype = torch.result_type(args[0], args[1])
    if dtype not in (torch.int32, torch.int64):
        return
    if bool(((args[0] == torch.iinfo(dtype).min) & torch.as_tensor(args[1] == -1)).any()):
        raise TraceError("the quotient is beyond the integers of its type", found=f"{torch.iinfo(dtype).min} / -1")


def _results(target: Any, args: Any, kwargs: Any) -> list[Tensor]:
    """The results without data; none where their sizes depend on data, and are then no larger than the inputs."""
    meta_args, meta_kwargs = _on_meta((args, kwargs))
    if _creates(target):
        meta_kwargs = {**meta_kwargs, "device": "meta"}
    try:
        result = target(*meta_args, **meta_kwargs)
    except (NotImplementedError, RuntimeError):
        return []
    results = result if isinstance(result, tuple | list) else (result,)
    return [item for item in results if isinstance(item, Tensor)]


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
