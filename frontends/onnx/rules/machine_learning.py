"""Rules for operators of `ai.onnx.ml` that compute on tensors, as scalers before a network do.

Trees, strings and dictionaries are not taken: they are no tensors.
"""

from __future__ import annotations

from typing import Any

import torch

from ..call import Call
from ..registry import rule
from ..values import Known, Value

aten = torch.ops.aten
ML = "ai.onnx.ml"


def _row(op: Call, name: str, default: float) -> Known:
    return Known(torch.tensor(op.attr_floats(name, [default]), dtype=torch.float32))


@rule("ArrayFeatureExtractor", domain=ML)
def array_feature_extractor(op: Call) -> Value:
    """Columns by number."""
    places = op.call(aten.reshape.default, op.input(1), [-1])
    return op.call(aten.index_select.default, op.input(0), -1, places)


@rule("Binarizer", domain=ML)
def binarizer(op: Call) -> Value:
    """1 above the threshold, 0 elsewhere."""
    x = op.input(0)
    return op.cast(op.call(aten.gt.Scalar, x, op.attr_float("threshold", 0.0)), op.dtype(x))


@rule("Scaler", domain=ML)
def scaler(op: Call) -> Value:
    """(x - offset) * scale, a number for all columns or one for each."""
    x = op.cast(op.input(0), torch.float32)
    moved = op.call(aten.sub.Tensor, x, _row(op, "offset", 0.0))
    return op.call(aten.mul.Tensor, moved, _row(op, "scale", 1.0))


@rule("Imputer", domain=ML)
def imputer(op: Call) -> Value:
    """What is missing, replaced by a number for its column. Missing is NaN, or the number stated."""
    x = op.input(0)
    if not op.dtype(x).is_floating_point:
        op.refuse("integers are not imputed", expected="floats")
    missing = op.attr_float("replaced_value_float", 0.0)
    absent = op.call(aten.isnan.default, x) if missing != missing else op.call(aten.eq.Scalar, x, missing)
    return op.call(aten.where.self, absent, _row(op, "imputed_value_floats", 0.0), x)


@rule("Normalizer", domain=ML)
def normalizer(op: Call) -> Value:
    """Each row over its largest value, the sum of its magnitudes, or its length."""
    x, how = op.cast(op.input(0), torch.float32), op.attr_str("norm", "MAX")
    norms: dict[str, tuple[Any, tuple[Any, ...]]] = {
        "MAX": (aten.amax.default, (op.call(aten.abs.default, x), [-1], True)),
        "L1": (aten.sum.dim_IntList, (op.call(aten.abs.default, x), [-1], True)),
        "L2": (aten.linalg_vector_norm.default, (x, 2, [-1], True)),
    }
    if how not in norms:
        op.refuse(f"the norm {how!r} is not known", expected=", ".join(norms))
    target, args = norms[how]
    return op.call(aten.div.Tensor, x, op.call(target, *args))


@rule("FeatureVectorizer", domain=ML)
def feature_vectorizer(op: Call) -> Value:
    """Columns beside each other."""
    return op.call(aten.cat.default, [op.cast(value, torch.float32) for value in op.inputs], 1)


@rule("LinearRegressor", domain=ML)
def linear_regressor(op: Call) -> Value:
    """A linear layer, whose weights are trained like any other's."""
    if op.attr_str("post_transform", "NONE") != "NONE":
        op.refuse("what follows the regression is not taken", expected="post_transform NONE")
    x, targets = op.cast(op.input(0), torch.float32), op.attr_int("targets", 1)
    weights = torch.tensor(op.attr_floats("coefficients"), dtype=torch.float32)
    if targets < 1 or len(weights) % targets:
        op.refuse("the coefficients do not make a row for each target", found=f"{len(weights)} for {targets}")
    weight = Known(weights.reshape(targets, -1), "coefficients", trainable=True)
    if not op.has_attr("intercepts"):
        return op.call(aten.linear.default, x, weight)
    bias = Known(torch.tensor(op.attr_floats("intercepts"), dtype=torch.float32), "intercepts", trainable=True)
    return op.call(aten.linear.default, x, weight, bias)
