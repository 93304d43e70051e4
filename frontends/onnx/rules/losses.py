"""Rules for losses, which files of models in training end with."""

from __future__ import annotations

from typing import Any

import torch

from ..call import Call
from ..registry import rule
from ..values import Value

aten = torch.ops.aten


@rule("SoftmaxCrossEntropyLoss", since=12)
def softmax_cross_entropy(op: Call) -> list[Value]:
    """-log softmax at the label, weighted by its class; labels to ignore weigh nothing. Also the logarithms."""
    scores, labels = op.input(0), op.input(1)
    logarithms = op.call(aten.log_softmax.int, scores, 1)
    labels = op.cast(labels, torch.int64)
    weights: Value | None = None
    if op.has_attr("ignore_index"):
        ignored = op.call(aten.eq.Scalar, labels, op.attr_int("ignore_index"))
        labels = op.call(aten.masked_fill.Scalar, labels, ignored, 0)
        weights = op.cast(op.call(aten.logical_not.default, ignored), op.dtype(scores))
    at = op.call(aten.gather.default, logarithms, 1, op.call(aten.unsqueeze.default, labels, 1))
    losses = op.call(aten.neg.default, op.call(aten.squeeze.dim, at, 1))
    if op.has(2):
        of_class = op.call(aten.index.Tensor, op.input(2), [labels])
        weights = of_class if weights is None else op.call(aten.mul.Tensor, of_class, weights)
    losses = losses if weights is None else op.call(aten.mul.Tensor, losses, weights)
    return [_reduced(op, losses, weights), logarithms]


def _reduced(op: Call, losses: Value, weights: Value | None) -> Value:
    """The mean is over the weights."""
    how = op.attr_str("reduction", "mean")
    reductions: dict[str, Any] = {"none": None, "sum": aten.sum.default, "mean": aten.mean.default}
    if how not in reductions:
        op.refuse(f"the reduction {how!r} is not known", expected=", ".join(reductions))
    if how == "mean" and weights is not None:
        total = op.call(aten.sum.default, losses)
        return op.call(aten.div.Tensor, total, op.call(aten.sum.default, weights))
    return losses if how == "none" else op.call(reductions[how], losses)
