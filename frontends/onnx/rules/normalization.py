"""Rules for normalization."""

from __future__ import annotations

import torch

from ..call import Call
from ..registry import rule
from ..values import Known, Size, Value

aten = torch.ops.aten


@rule("BatchNormalization")
def batch_norm(op: Call) -> Value | list[Value]:
    x, weight, bias, mean, var = op.inputs
    epsilon, momentum = op.attr_float("epsilon", 1e-5), op.attr_float("momentum", 0.9)
    if op.opset >= 14 and op.attr_int("training_mode", 0):
        return _training(op, epsilon, momentum)
    if op.opset < 9 and op.attr_int("spatial", 1) == 0:
        op.refuse("statistics of every element are not taken", expected="spatial 1")
    mean, var, kept = op.frozen(mean), op.frozen(var), round(1 - momentum, 9)
    return op.call(aten.batch_norm.default, x, weight, bias, mean, var, False, kept, epsilon, True)


def _training(op: Call, epsilon: float, momentum: float) -> list[Value]:
    """The batch's own statistics, and the running ones after it; their variance is over n, not n - 1."""
    x, weight, bias, mean, var = op.inputs
    axes = [axis for axis in range(op.rank(x)) if axis != 1]
    own_mean = op.call(aten.mean.dim, x, axes)
    own_var = op.call(aten.var.correction, x, axes, correction=0)
    y = op.call(aten.batch_norm.default, x, weight, bias, own_mean, own_var, False, 0.1, epsilon, True)
    return [y, _moved(op, mean, own_mean, momentum), _moved(op, var, own_var, momentum)]


def _moved(op: Call, old: Value, new: Value, momentum: float) -> Value:
    kept = op.call(aten.mul.Tensor, op.frozen(old), momentum)
    return op.call(aten.add.Tensor, kept, op.call(aten.mul.Tensor, new, 1 - momentum))


@rule("LayerNormalization")
def layer_norm(op: Call) -> Value | list[Value]:
    x, weight, bias = op.input(0), op.input(1), op.optional(2)
    axis, epsilon = op.axis(op.attr_int("axis", -1), op.rank(x)), op.attr_float("epsilon", 1e-5)
    sizes = op.shape(x)[axis:]
    weight, bias = _as_large(op, weight, sizes), None if bias is None else _as_large(op, bias, sizes)
    y: Value = op.call(aten.layer_norm.default, x, sizes, weight, bias, epsilon)
    if not (op.wants(1) or op.wants(2)):
        return y
    axes = list(range(axis, op.rank(x)))
    wide = op.cast(x, torch.float32)
    var = op.call(aten.var.correction, wide, axes, correction=0, keepdim=True)
    spread = op.call(aten.rsqrt.default, op.call(aten.add.Tensor, var, epsilon))
    return [y, op.call(aten.mean.dim, wide, axes, True), spread]


@rule("RMSNormalization", since=23)
def rms_norm(op: Call) -> Value | None:
    """x / the root of the mean of its squares, computed in float32."""
    x, weight = op.input(0), op.input(1)
    if op.attr_int("stash_type", 1) != 1 or op.dtype(weight) is not op.dtype(x):
        return None
    sizes = op.shape(x)[op.axis(op.attr_int("axis", -1), op.rank(x)) :]
    return op.call(aten.rms_norm.default, x, sizes, _as_large(op, weight, sizes), op.attr_float("epsilon", 1e-5))


@rule("GroupNormalization", since=21)
def group_norm(op: Call) -> Value | None:
    x, weight, bias = op.inputs
    if op.attr_int("stash_type", 1) != 1 or op.dtype(weight) is not op.dtype(x):
        return None
    groups, epsilon = op.attr_int("num_groups"), op.attr_float("epsilon", 1e-5)
    return op.call(aten.group_norm.default, x, groups, weight, bias, epsilon)


def _as_large(op: Call, value: Value, sizes: list[Size]) -> Value:
    """The scale or bias in the sizes that torch asks for; ONNX broadcasts."""
    if op.shape(value) == sizes:
        return value
    result: Value = op.call(aten.expand.default, value, sizes)
    if isinstance(value, Known) and isinstance(result, Known):
        return Known(result.tensor.contiguous(), value.name, value.trainable)
    return result


@rule("InstanceNormalization")
def instance_norm(op: Call) -> Value:
    x, weight, bias = op.inputs
    epsilon = op.attr_float("epsilon", 1e-5)
    return op.call(aten.instance_norm.default, x, weight, bias, None, None, True, 0.1, epsilon, True)


@rule("LRN")
def local_response_norm(op: Call) -> Value:
    """x / (bias + alpha * the mean of the squares of nearby channels) ^ beta."""
    x, window = op.input(0), op.attr_int("size")
    if op.rank(x) < 3:
        op.refuse("there are no axes after the channels", expected="an input of rank 3 or more", found=op.rank(x))
    sizes, before = op.shape(x), (window - 1) // 2
    squares = op.call(aten.reshape.default, op.call(aten.mul.Tensor, x, x), [sizes[0], 1, sizes[1], -1])
    padded = op.call(aten.pad.default, squares, [0, 0, before, window - 1 - before], "constant", 0.0)
    means = op.call(aten.reshape.default, op.call(aten.avg_pool2d.default, padded, [window, 1], [1, 1]), sizes)
    scaled = op.call(aten.mul.Tensor, means, op.attr_float("alpha", 1e-4))
    spread = op.call(aten.add.Tensor, scaled, op.attr_float("bias", 1.0))
    return op.call(aten.div.Tensor, x, op.call(aten.pow.Tensor_Scalar, spread, op.attr_float("beta", 0.75)))


@rule("LpNormalization")
def lp_norm(op: Call) -> Value:
    """x / its norm along an axis; zero where that is zero."""
    x, p = op.input(0), op.attr_int("p", 2)
    axis = op.axis(op.attr_int("axis", -1), op.rank(x))
    norm = op.call(aten.linalg_vector_norm.default, x, p, [axis], True)
    safe = op.call(aten.where.ScalarOther, op.call(aten.ne.Scalar, norm, 0), norm, 1.0)
    return op.call(aten.div.Tensor, x, safe)
