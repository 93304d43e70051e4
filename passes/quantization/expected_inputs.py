"""The mean of what each layer reads, from batch norms instead of data."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, fx

from tersor.ir.program import Program
from tersor.ir.shapes import KEY

from .roles import WEIGHTS, Role, clamp_range, role_of

aten = torch.ops.aten


@dataclass(frozen=True)
class Moments:
    """Mean and variance of each channel, float64[channels]."""

    mean: Tensor
    variance: Tensor


def expected_inputs(program: Program) -> Mapping[str, Tensor]:
    """The expected value of each input channel of layers behind batch norms, float32[channels] by the layer's name.

    A channel behind batch norm is normally distributed with the mean `bias` and the deviation `|weight|`; clamps cut
    that distribution off, pooling and residual adds keep means: Nagel et al. 2019 (arXiv:1906.04721), section 4.2.1 and
    appendix C. The program is float, with its batch norms: take it as it was traced, before `FoldBatchNorm`. Layers
    whose input is not known this way, as the first, are left out.
    """
    known: dict[fx.Node, Moments] = {}
    found: dict[str, Tensor] = {}
    for node in program.graph.nodes:
        if node.op != "call_function":
            continue
        source = node.args[0] if node.args else None
        if node.target in WEIGHTS and isinstance(source, fx.Node) and source in known:
            found[node.name] = known[source].mean.float()
        moments = _moments(program, node, known)
        if moments is not None:
            known[node] = moments
    return found


def _moments(program: Program, node: fx.Node, known: Mapping[fx.Node, Moments]) -> Moments | None:
    if node.target is aten.batch_norm.default:
        weight, bias = (program.constant(argument) for argument in node.args[1:3])
        if weight is None or bias is None:
            return None
        return Moments(bias.detach().double(), weight.detach().double().square())
    sources = [source for source in node.all_input_nodes if source.op != "get_attr"]
    if not sources or any(source not in known for source in sources):
        return None
    if role_of(program, node) is Role.CLAMP:
        return clamped(known[sources[0]], *clamp_range(node))
    if node.target is aten.add.Tensor and len(sources) == 2 and not node.kwargs:
        left, right = (known[source] for source in sources)
        return Moments(left.mean + right.mean, left.variance + right.variance)
    return known[sources[0]] if _keeps_mean(node) else None


def _keeps_mean(node: fx.Node) -> bool:
    """Whether channels keep their mean: averages over space, and what only regroups other dimensions."""
    if node.target in (aten.adaptive_avg_pool2d.default, aten.dropout.default):
        return True
    shape = node.args[0].meta[KEY].shape  # type: ignore[union-attr]  # a node
    if node.target is aten.mean.dim:
        return len(shape) == 4 and sorted(d % 4 for d in node.args[1]) == [2, 3]  # type: ignore[union-attr, operator]
    flat = node.target in (aten.flatten.using_ints, aten.reshape.default)
    return flat and list(shape[2:]) == [1] * (len(shape) - 2) and node.meta[KEY].dim() == 2


def clamped(moments: Moments, low: float, high: float) -> Moments:
    """Mean and variance of a normal variable cut off at `low` and `high`."""
    deviation = moments.variance.clamp(min=1e-24).sqrt()
    a, b = ((bound - moments.mean) / deviation for bound in (low, high))
    below, above = _cumulative(a), 1 - _cumulative(b)
    inside = 1 - below - above
    mean, deviation_ = moments.mean, deviation
    first = mean * inside + deviation_ * (_density(a) - _density(b))
    spread = _finite(a) * _density(a) - _finite(b) * _density(b)
    second = (mean.square() + deviation_.square()) * inside + deviation_.square() * spread
    second += 2 * mean * deviation_ * (_density(a) - _density(b))
    for bound, share in ((low, below), (high, above)):
        if math.isfinite(bound):
            first, second = first + bound * share, second + bound * bound * share
    return Moments(first, (second - first.square()).clamp(min=0))


def _density(x: Tensor) -> Tensor:
    return torch.exp(-x.square() / 2) / math.sqrt(2 * math.pi)


def _cumulative(x: Tensor) -> Tensor:
    return (1 + torch.erf(x / math.sqrt(2))) / 2


def _finite(x: Tensor) -> Tensor:
    """Infinities as 0: what they are multiplied with is 0."""
    return torch.where(torch.isfinite(x), x, torch.zeros_like(x))
