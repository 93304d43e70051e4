"""What the rules of ONNX are tried on: functions with their inputs, in groups that are traced together."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

aten = torch.ops.aten
Case = tuple[Callable[..., Any], Sequence[Tensor]]


def randn(*shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(sum(shape)))


def integers(high: int, *shape: int) -> Tensor:
    return torch.randint(0, high, shape, generator=torch.Generator().manual_seed(high))


x = randn(2, 4, 6, 6)
positive = x.abs() + 0.1
small = x.clamp(-0.9, 0.9)
whole = integers(7, 2, 4, 6)
mask = x > 0

UNARY: dict[str, Case] = {
    **{
        name: (getattr(torch, name), (x,))
        for name in (
            "abs",
            "ceil",
            "cos",
            "cosh",
            "erf",
            "exp",
            "expm1",
            "floor",
            "neg",
            "relu",
            "round",
            "sigmoid",
            "sign",
            "sin",
            "sinh",
            "tan",
            "tanh",
            "atan",
            "asinh",
            "square",
            "trunc",
            "exp2",
            "reciprocal",
            "isnan",
            "isinf",
        )
    },
    **{name: (getattr(torch, name), (positive,)) for name in ("log", "log1p", "log2", "log10", "sqrt", "rsqrt")},
    **{name: (getattr(torch, name), (small,)) for name in ("acos", "asin", "atanh")},
    "acosh": (torch.acosh, (positive + 1,)),
    "gelu": (F.gelu, (x,)),
    "gelu_tanh": (lambda t: F.gelu(t, approximate="tanh"), (x,)),
    "silu": (F.silu, (x,)),
    "mish": (F.mish, (x,)),
    "hardswish": (F.hardswish, (x * 3,)),
    "hardsigmoid": (F.hardsigmoid, (x * 3,)),
    "relu6": (F.relu6, (x * 9,)),
    "hardtanh": (lambda t: F.hardtanh(t, -0.5, 0.25), (x,)),
    "leaky_relu": (lambda t: F.leaky_relu(t, 0.3), (x,)),
    "elu": (lambda t: F.elu(t, 0.7), (x,)),
    "selu": (F.selu, (x,)),
    "celu": (lambda t: F.celu(t, 0.7), (x,)),
    "softplus": (lambda t: F.softplus(t, 2.0, 3.0), (x * 5,)),
    "logsigmoid": (F.logsigmoid, (x,)),
    "prelu": (F.prelu, (x, torch.tensor([0.1, 0.2, 0.3, 0.4]))),
    "clamp": (lambda t: t.clamp(-0.5, 1), (x,)),
    "clamp_min": (lambda t: t.clamp(min=0.25), (x,)),
    "clamp_max": (lambda t: t.clamp(max=0.25), (x,)),
    "clamp_tensor": (torch.clamp, (x, x - 0.1, x.mean(1, keepdim=True))),
    "clamp_int": (lambda t: t.clamp(1, 3), (whole,)),
    "dropout": (lambda t: F.dropout(t, 0.5, False), (x,)),
    "to_int": (lambda t: (t * 3).to(torch.int64), (x,)),
    "int_exp": (torch.exp, (whole,)),
    "int_sqrt": (torch.sqrt, (whole,)),
    "logical_not": (torch.logical_not, (whole,)),
    "bitwise_not": (lambda t: ~t, (mask,)),
    "bitwise_not_int": (lambda t: ~t, (whole,)),
}

BINARY: dict[str, Case] = {
    "add": (torch.add, (x, positive)),
    "add_alpha": (lambda a, b: torch.add(a, b, alpha=2.5), (x, positive)),
    "add_int_float": (torch.add, (whole[:, :, :, None], x)),
    "add_scalar_to_int": (lambda a: a + 1.5, (whole,)),
    "add_bool": (lambda a: a + a, (mask,)),
    "rsub": (lambda a: 1.5 - a, (x,)),
    "sub": (lambda a, b: torch.sub(a, b, alpha=3), (x, positive)),
    "mul_broadcast": (torch.mul, (x, randn(4, 1, 1))),
    "mul_bool": (torch.mul, (mask, mask)),
    "mul_bool_float": (torch.mul, (mask, x)),
    "div": (torch.div, (x, positive)),
    "div_int": (torch.div, (whole, whole + 1)),
    "div_floor": (lambda a, b: torch.div(a, b, rounding_mode="floor"), (x, positive)),
    "div_trunc": (lambda a, b: torch.div(a, b, rounding_mode="trunc"), (x, positive)),
    "div_floor_int": (lambda a, b: torch.div(a - 3, b, rounding_mode="floor"), (whole, whole + 2)),
    "div_trunc_int": (lambda a, b: torch.div(a - 3, b, rounding_mode="trunc"), (whole, whole + 2)),
    "floor_divide": (lambda a: (a - 3) // 2, (whole,)),
    "remainder": (lambda a: a % 0.7, (x,)),
    "remainder_negative": (lambda a: a % -0.7, (x,)),
    "remainder_int": (lambda a: (a - 3) % 2, (whole,)),
    "fmod": (lambda a: torch.fmod(a, 0.7), (x,)),
    "pow": (lambda a: a**2, (x,)),
    "pow_half": (lambda a: a**0.5, (positive,)),
    "pow_tensor": (torch.pow, (positive, x)),
    "pow_base": (lambda a: 2**a, (x,)),
    "maximum": (torch.maximum, (x, positive - 0.5)),
    "minimum": (torch.minimum, (x, positive - 0.5)),
    "min_other": (torch.min, (x, positive - 0.5)),
    "max_other": (torch.max, (x, positive - 0.5)),
    "where": (torch.where, (mask, x, positive)),
    "where_scalar": (lambda c, a: torch.where(c, a, 0.0), (mask, x)),
    "masked_fill": (lambda a, m: a.masked_fill(m, -math.inf), (x, mask)),
    "eq": (lambda a, b: a == b, (whole, whole.flip(0))),
    "ne": (lambda a: a != 2, (whole,)),
    "lt": (lambda a, b: a < b, (x, positive)),
    "le": (lambda a: a <= 2.5, (whole,)),
    "gt": (lambda a, b: a > b, (x, whole[:, :, :, None])),
    "ge_bool": (lambda a, b: a >= b, (mask, mask.flip(0))),
    "and": (lambda a, b: a & b, (mask, mask.flip(0))),
    "or_int": (lambda a: a | 1, (whole,)),
    "xor": (lambda a, b: a ^ b, (mask, mask.flip(0))),
    "logical_and": (torch.logical_and, (whole, mask[..., 0])),
    "logical_or": (torch.logical_or, (whole, mask[..., 0])),
}  # fmt: skip

matrix, batch = randn(5, 8), randn(3, 5, 8)

CONTRACTIONS: dict[str, Case] = {
    "conv2d": (lambda t, w, b: F.conv2d(t, w, b, 2, 1), (x, randn(8, 4, 3, 3), randn(8))),
    "conv2d_grouped": (lambda t, w: F.conv2d(t, w, None, 1, (1, 0), (1, 2), 2), (x, randn(8, 2, 3, 3))),
    "conv2d_same": (lambda t, w: F.conv2d(t, w, padding="same"), (x, randn(8, 4, 2, 4))),
    "conv2d_valid": (lambda t, w: F.conv2d(t, w, padding="valid"), (x, randn(8, 4, 2, 4))),
    "conv2d_unbatched": (F.conv2d, (x[0], randn(8, 4, 3, 3))),
    "conv1d": (lambda t, w, b: F.conv1d(t, w, b, 2, 2), (x[..., 0], randn(8, 4, 3), randn(8))),
    "conv3d": (F.conv3d, (randn(1, 2, 4, 5, 6), randn(3, 2, 2, 2, 2))),
    "conv_transpose1d": (lambda t, w: F.conv_transpose1d(t, w, None, 2, 1, 1), (x[..., 0], randn(4, 3, 3))),
    "conv_transpose2d": (lambda t, w, b: F.conv_transpose2d(t, w, b, 2, 1, 1, 2), (x, randn(4, 3, 3, 3), randn(6))),
    "linear": (F.linear, (matrix, randn(6, 8), randn(6))),
    "linear_vector": (F.linear, (matrix[0], randn(6, 8), randn(6))),
    "linear_3d": (F.linear, (batch, randn(6, 8), randn(6))),
    "linear_no_bias": (F.linear, (randn(2, 3, 5, 8), randn(6, 8))),
    "matmul": (torch.matmul, (batch, randn(8, 4))),
    "matmul_broadcast": (torch.matmul, (randn(2, 1, 5, 8), randn(3, 8, 4))),
    "mv": (torch.mv, (matrix, randn(8))),
    "bmm": (torch.bmm, (batch, randn(3, 8, 2))),
    "addmm": (lambda c, a, b: torch.addmm(c, a, b, beta=0.5, alpha=2), (randn(4), matrix, randn(8, 4))),
    "baddbmm": (lambda c, a, b: torch.baddbmm(c, a, b, beta=0.5, alpha=2), (randn(3, 5, 2), batch, randn(3, 8, 2))),
    "einsum": (lambda a, b: torch.einsum("bij,jk->bik", a, b), (batch, randn(8, 2))),
    "outer": (torch.outer, (randn(3), randn(4))),
}

query, key = randn(2, 4, 5, 8), randn(2, 4, 7, 8)
value, grouped = randn(2, 4, 7, 6), randn(2, 2, 7, 8)
visible = integers(2, 2, 1, 5, 7).bool()
dead_row = visible.clone()
dead_row[:, :, 2] = False
bias = torch.where(dead_row, randn(2, 1, 5, 7), -math.inf)
attend = F.scaled_dot_product_attention

ATTENTION: dict[str, Case] = {
    "attention": (attend, (query, key, value)),
    "attention_scaled": (lambda q, k, v: attend(q, k, v, scale=0.3), (query, key, value)),
    "attention_causal": (lambda q, k, v: attend(q, k, v, is_causal=True), (query, key, value)),
    "attention_masked": (attend, (query, key, value, visible)),
    "attention_dead_row": (attend, (query, key, value, dead_row)),
    "attention_bias": (attend, (query, key, value, randn(2, 1, 5, 7))),
    "attention_dead_bias": (attend, (query, key, value, bias)),
    "attention_grouped": (lambda q, k, v: attend(q, k, v, enable_gqa=True), (query, grouped, grouped + 1)),
    "attention_3d": (attend, (query[0], key[0], value[0])),
}

NORMS: dict[str, Case] = {
    "batch_norm": (F.batch_norm, (x, randn(4), positive[0, :, 0, 0], randn(4), randn(4))),
    "batch_norm_plain": (F.batch_norm, (x, randn(4), positive[0, :, 0, 0])),
    "layer_norm": (lambda t, w, b: F.layer_norm(t, (6,), w, b), (x, randn(6), randn(6))),
    "layer_norm_plain": (lambda t: F.layer_norm(t, (6, 6)), (x,)),
    "rms_norm": (lambda t, w: F.rms_norm(t, (6,), w, 1e-5), (x, randn(6))),
    "rms_norm_plain": (lambda t: F.rms_norm(t, (6, 6)), (x,)),
    "group_norm": (lambda t, w, b: F.group_norm(t, 2, w, b), (x, randn(4), randn(4))),
    "instance_norm": (F.instance_norm, (x,)),
    "softmax": (lambda t: F.softmax(t, 1), (x,)),
    "softmax_dtype": (lambda t: F.softmax(t, -1, dtype=torch.float64), (x,)),
    "log_softmax": (lambda t: F.log_softmax(t, -1), (x,)),
}

REDUCTIONS: dict[str, Case] = {
    "sum": (lambda t: t.sum((1, 2)), (x,)),
    "sum_all": (torch.sum, (x,)),
    "sum_int": (lambda t: t.sum(-1, keepdim=True), (whole,)),
    "sum_bool": (lambda t: t.sum(-1), (mask,)),
    "mean": (lambda t: t.mean(1, keepdim=True), (x,)),
    "mean_all": (torch.mean, (x,)),
    "mean_spatial": (lambda t: t.mean((2, 3)), (x,)),
    "mean_spatial_kept": (lambda t: t.mean((-1, -2), keepdim=True), (x,)),
    "amax": (lambda t: t.amax((2, 3)), (x,)),
    "amin": (lambda t: t.amin(1, keepdim=True), (x,)),
    "max_dim": (lambda t: tuple(torch.max(t, 2)), (x,)),
    "min_dim": (lambda t: torch.min(t, 2, keepdim=True)[0], (x,)),
    "max_all": (torch.max, (x,)),
    "argmax": (lambda t: t.argmax(2), (x,)),
    "argmax_all": (torch.argmax, (x,)),
    "argmin": (lambda t: t.argmin(1, keepdim=True), (x,)),
    "prod": (lambda t: t.prod(1), (x,)),
    "var": (lambda t: t.var((1, 2)), (x,)),
    "var_mean": (lambda t: torch.var_mean(t, (1, 2), keepdim=True), (x,)),
    "var_mean_all": (torch.var_mean, (x,)),
    "var_mean_biased": (lambda t: torch.var_mean(t, 1, correction=0), (x,)),
    "cdist": (lambda t: torch.cdist(t, t[:, :1] * 2), (x,)),
    "cdist_1": (lambda t: torch.cdist(t, t + 1, p=1.0), (x,)),
    "cdist_3": (lambda t: torch.cdist(t, t + 1, p=3.0), (x,)),
    "var_biased": (lambda t: t.var(1, correction=0, keepdim=True), (x,)),
    "std": (torch.std, (x,)),
    "norm": (lambda t: torch.linalg.vector_norm(t, 2, 1), (x,)),
    "norm_1": (lambda t: torch.linalg.vector_norm(t, 1, (1, 2)), (x,)),
    "logsumexp": (lambda t: t.logsumexp(1), (x,)),
    "cumsum": (lambda t: t.cumsum(1), (x,)),
    "cumsum_bool": (lambda t: t.cumsum(-1), (mask,)),
    "any": (lambda t: t.any(1), (mask,)),
    "all_whole": (torch.all, (whole,)),
    "topk": (lambda t: tuple(torch.topk(t, 3, 2)), (x,)),
    "topk_least": (lambda t: torch.topk(t, 3, 1, largest=False)[0], (x,)),
    "sort": (lambda t: tuple(torch.sort(t, 1, descending=True)), (x,)),
    "argsort": (lambda t: torch.argsort(t, 1, descending=True), (x,)),
    "argsort_stable": (lambda t: torch.argsort(t, stable=True, dim=-1), (x,)),
    "sort_stable": (lambda t: tuple(torch.sort(t, stable=True, dim=2)), (x,)),
    "diff": (lambda t: torch.diff(t, n=2, dim=1), (x,)),
    "diff_joined": (lambda t: torch.diff(t, dim=-1, prepend=t[..., :1] - 1), (whole,)),
    "diff_bool": (lambda t: torch.diff(t, dim=-1), (mask,)),
}

MOVES: dict[str, Case] = {
    "reshape": (lambda t: t.reshape(2, -1, 3), (x,)),
    "reshape_empty": (lambda t: t[:0].reshape(0, 4, 36), (x,)),
    "flatten": (lambda t: t.flatten(1), (x,)),
    "unflatten": (lambda t: t.unflatten(1, (2, 2)), (x,)),
    "squeeze": (lambda t: t[:, :1].squeeze(1), (x,)),
    "squeeze_other": (lambda t: t.squeeze(1), (x,)),
    "squeeze_all": (lambda t: t[:1, :1].squeeze(), (x,)),
    "unsqueeze": (lambda t: t.unsqueeze(-1), (x,)),
    "expand": (lambda t: t[:, :1].expand(3, 2, 5, 6, -1), (x,)),
    "repeat": (lambda t: t.repeat(2, 1, 3, 1, 1), (x,)),
    "repeat_interleave": (lambda t: t.repeat_interleave(3, 1), (x,)),
    "repeat_interleave_flat": (lambda t: t.repeat_interleave(2), (x,)),
    "permute": (lambda t: t.permute(0, -1, 1, 2), (x,)),
    "transpose": (lambda t: t.transpose(-1, 1), (x,)),
    "movedim": (lambda t: t.movedim(1, -1), (x,)),
    "t": (lambda t: t[0, 0].t(), (x,)),
    "unfold": (lambda t: t.unfold(2, 3, 2), (x,)),
    "unfold_last": (lambda t: t.unfold(-1, 2, 1), (x,)),
    "flip": (lambda t: t.flip(1, 3), (x,)),
    "roll": (lambda t: t.roll((1, -2), (1, 2)), (x,)),
    "roll_flat": (lambda t: t.roll(5), (x,)),
    "slice": (lambda t: t[:, 1:3, ::2, -4:-1], (x,)),
    "slice_nothing": (lambda t: t[:, :9], (x,)),
    "select": (lambda t: t[:, -1, 2], (x,)),
    "split": (lambda t: torch.split(t, 4, 2), (x,)),
    "split_sizes": (lambda t: torch.split(t, [1, 2, 3], 3)[1], (x,)),
    "chunk": (lambda t: torch.chunk(t, 4, 3), (x,)),
    "unbind": (lambda t: torch.unbind(t, 1)[2], (x,)),
    "cat": (lambda a, b: torch.cat([a, b], 1), (x, whole[:, :, :, None].expand(2, 4, 6, 6))),
    "cat_empty": (lambda a: torch.cat([torch.zeros(0), a], -1), (x,)),
    "stack": (lambda a, b: torch.stack([a, b], -1), (x, positive)),
    "pixel_shuffle": (lambda t: F.pixel_shuffle(t, 2), (x,)),
    "tril": (lambda t: t.tril(-1), (x,)),
    "triu": (lambda t: t.triu(1), (x,)),
}

rows, columns = torch.tensor([1, 0, -1]), torch.tensor([[2], [-1]])
places = integers(4, 2, 3, 6, 6)

INDEXING: dict[str, Case] = {
    "embedding": (F.embedding, (integers(5, 2, 3), randn(5, 4))),
    **{
        f"embedding_bag_{mode}": (partial(F.embedding_bag, mode=mode), (integers(5, 2, 3), randn(5, 4)))
        for mode in ("sum", "mean", "max")
    },
    "embedding_bag_weighted": (
        lambda i, w, by: F.embedding_bag(i, w, per_sample_weights=by, mode="sum"),
        (integers(5, 2, 3), randn(5, 4), randn(2, 3)),
    ),
    "index": (lambda t, i: t[i], (x, rows)),
    "index_inner": (lambda t, i: t[:, :, i], (x, columns)),
    "index_two": (lambda t, i, j: t[i, j], (x, rows, columns)),
    "index_two_inner": (lambda t, i, j: t[:, i, j], (x, rows, columns)),
    "index_apart": (lambda t, i, j: t[:, i, :, j], (x, rows, columns)),
    "index_apart_first": (lambda t, i, j: t[i, :, j], (x, rows, columns)),
    "index_select": (lambda t, i: t.index_select(2, i), (x, torch.tensor([3, 0]))),
    "gather": (lambda t, i: t.gather(1, i), (x, places)),
    "scatter": (lambda t, i, s: t.scatter(1, i[:, :1], s), (x, places, positive)),
    "scatter_value": (lambda t, i: t.scatter(1, i, 0.5), (x, places)),
    "scatter_add": (lambda t, i, s: t.scatter_add(1, i, s), (x, places, positive)),
    "slice_scatter": (lambda t, s: t.slice_scatter(s, 3, 1, 6, 2), (x, randn(2, 4, 6, 3))),
    "slice_scatter_negative": (lambda t, s: t.slice_scatter(s, 3, -3), (x, randn(2, 4, 6, 3))),
    "select_scatter": (lambda t, s: t.select_scatter(s, 1, -1), (x, randn(2, 6, 6))),
    "copy": (lambda t, s: torch.ops.aten.copy(t, s), (x, randn(6))),
    "index_put": (lambda t, i, v: t.index_put((i, i.abs()), v), (x, torch.tensor([1, 0]), randn(6))),
    "one_hot": (lambda t: F.one_hot(t, 7), (whole,)),
}

POOLS: dict[str, Case] = {
    "max_pool2d": (lambda t: F.max_pool2d(t, 3, 2, 1), (x,)),
    "max_pool2d_ceil": (lambda t: F.max_pool2d(t, 3, 2, ceil_mode=True), (x,)),
    "max_pool2d_ceil_padded": (lambda t: F.max_pool2d(t, 2, 2, 1, ceil_mode=True), (randn(1, 2, 7, 7),)),
    "max_pool2d_dilated": (lambda t: F.max_pool2d(t, 2, 1, 1, 2), (x,)),
    "max_pool1d": (lambda t: F.max_pool1d(t, 2), (x[..., 0],)),
    "avg_pool2d": (lambda t: F.avg_pool2d(t, 3, 2, 1), (x,)),
    "avg_pool2d_inside": (lambda t: F.avg_pool2d(t, 3, 2, 1, count_include_pad=False), (x,)),
    "avg_pool2d_ceil": (lambda t: F.avg_pool2d(t, 3, 2, 1, ceil_mode=True), (x,)),
    "avg_pool2d_divisor": (lambda t: F.avg_pool2d(t, 3, 2, 1, divisor_override=5), (x,)),
    "avg_pool1d": (lambda t: F.avg_pool1d(t, 2), (x[..., 0],)),
    "adaptive_one": (lambda t: F.adaptive_avg_pool2d(t, 1), (x,)),
    "adaptive_divisor": (lambda t: F.adaptive_avg_pool2d(t, (3, 2)), (x,)),
    "adaptive_uneven": (lambda t: F.adaptive_avg_pool2d(t, (4, 7)), (x,)),
    "adaptive_uneven_1d": (lambda t: F.adaptive_avg_pool1d(t, 4), (x[..., 0],)),
    "adaptive_1d": (lambda t: F.adaptive_avg_pool1d(t, 1), (x[..., 0],)),
    "nearest_scale": (lambda t: F.interpolate(t, scale_factor=2), (x,)),
    "nearest_size": (lambda t: F.interpolate(t, (4, 9)), (x,)),
    "bilinear": (lambda t: F.interpolate(t, scale_factor=1.5, mode="bilinear"), (x,)),
    "bilinear_corners": (lambda t: F.interpolate(t, (5, 11), mode="bilinear", align_corners=True), (x,)),
    "bicubic": (lambda t: F.interpolate(t, (12, 9), mode="bicubic"), (x,)),
    "pad": (lambda t: F.pad(t, (1, 2, 0, 3)), (x,)),
    "pad_value": (lambda t: F.pad(t, (1, 0, 0, 0, 2, 1), value=-math.inf), (x,)),
    "pad_negative": (lambda t: F.pad(t, (-1, 2)), (x,)),
    "pad_reflect": (lambda t: F.pad(t, (1, 2, 3, 0), mode="reflect"), (x,)),
    "pad_replicate": (lambda t: F.pad(t, (1, 2, 3, 0), mode="replicate"), (x,)),
    "pad_circular": (lambda t: F.pad(t, (1, 2, 3, 0), mode="circular"), (x,)),
}  # fmt: skip

CREATION: dict[str, Case] = {
    "arange": (lambda t: t + torch.arange(6), (x,)),
    "arange_step": (lambda t: t + torch.arange(0.5, 6.5, 1), (x,)),
    "full": (lambda t: t + torch.full((4, 1, 1), 2), (x,)),
    "zeros": (lambda t: torch.cat([t, torch.zeros(2, 1, 6, 6)], 1), (x,)),
    "ones_like": (lambda t: t - torch.ones_like(t), (x,)),
    "full_like": (lambda t: torch.full_like(t, -math.inf), (x,)),
    "new_ones": (lambda t: t.new_ones((3,), dtype=torch.bool) & t.new_ones((1,), dtype=torch.bool), (x,)),
    "new_full": (lambda t: t.new_full((3,), 7), (x,)),
    "scalar_tensor": (lambda t: t * torch.tensor(2.5), (x,)),
}

GROUPS = {
    "unary": UNARY,
    "binary": BINARY,
    "contractions": CONTRACTIONS,
    "attention": ATTENTION,
    "norms": NORMS,
    "reductions": REDUCTIONS,
    "moves": MOVES,
    "indexing": INDEXING,
    "pools": POOLS,
    "creation": CREATION,
}
