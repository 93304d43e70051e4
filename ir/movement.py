"""Operators that only move or select: every value of the result is one of their first input."""

from __future__ import annotations

import operator

import torch

aten = torch.ops.aten

MOVEMENTS = (
    aten.reshape.default,
    aten.flatten.using_ints,
    aten.unflatten.int,
    aten.transpose.int,
    aten.permute.default,
    aten.squeeze.dim,
    aten.squeeze.dims,
    aten.squeeze.default,
    aten.unsqueeze.default,
    aten.expand.default,
    aten.repeat.default,
    aten.repeat_interleave.self_int,
    aten.slice.Tensor,
    aten.select.int,
    aten.index_select.default,
    aten.flip.default,
    aten.roll.default,
    aten.channel_shuffle.default,
    aten.pixel_shuffle.default,
    aten.pixel_unshuffle.default,
    aten.split.Tensor,
    aten.split_with_sizes.default,
    aten.chunk.default,
    aten.unbind.int,
    operator.getitem,
    aten.clone.default,
    aten.contiguous.default,
)
"""Those whose arguments alone say which value goes where, whatever the values are."""

SELECTIONS = (
    *MOVEMENTS,
    aten.index.Tensor,
    aten.gather.default,
    aten.amax.default,
    aten.amin.default,
    aten.max_pool1d.default,
    aten.max_pool2d.default,
    aten.upsample_nearest2d.vec,
    aten.upsample_nearest2d.default,
)
"""Passes place no grid behind them, and a bound of their input is one of their result."""
