"""Batch norm that no layer can take in, as a layer itself."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, fx, nn

from tersor.ir.program import Program
from tersor.ir.shapes import KEY
from tersor.ir.stage import Stage

from ..arguments import argument
from ..base import Pass, PassResult, on_the_cpu

aten = torch.ops.aten

_CONVOLUTIONS = {3: aten.conv1d.default, 4: aten.conv2d.default}
"""By the number of dimensions."""


@dataclass(frozen=True)
class ConvolveBatchNorm(Pass):
    """Batch norm with fixed statistics as a depthwise convolution of one pixel.

        %batch_norm = batch_norm(%x, ..., False, ...)      %conv2d = conv2d(%x, @scale, @shift, groups=channels)

    A network that normalizes before its convolutions, as DenseNet does, has batch norms that `FoldBatchNorm` leaves:
    a relu stands between. Integer targets have no batch norm, but a convolution with one weight a channel is the same,
    and quantized it loses nothing: a weight that is alone on its grid is exact.
    """

    takes: ClassVar[frozenset[Stage]] = frozenset({Stage.FLOAT})

    @on_the_cpu
    def run(self, program: Program) -> PassResult:
        """Rewrite each that does not train, in graph order."""
        nodes = list(program.graph.find_nodes(op="call_function", target=aten.batch_norm.default))
        done = sum(_convolve(program, node) for node in nodes)
        program.remove_unused_tensors()
        return PassResult(program, done > 0, (f"{done} batch norms became depthwise convolutions",) if done else ())


def _convolve(program: Program, node: fx.Node) -> bool:
    convolution = _CONVOLUTIONS.get(node.meta[KEY].dim())
    affine = _affine(program, node)
    if convolution is None or affine is None or argument(node, "training"):
        return False
    channels, rank = affine[0].numel(), node.meta[KEY].dim()
    owner = str(argument(node, "running_mean").target).rpartition(".")[0]
    shapes = ((channels, 1, *[1] * (rank - 2)), (channels,))
    with program.graph.inserting_before(node):
        scale, shift = (
            program.attribute(program.add_tensor(f"{owner}.{name}".lstrip("."), nn.Parameter(value.reshape(shape))))
            for name, value, shape in zip(("scale", "shift"), affine, shapes, strict=True)
        )
        ones, zeros = [1] * (rank - 2), [0] * (rank - 2)
        arguments = (node.args[0], scale, shift, ones, zeros, ones, channels)
        program.replace(node, program.call(convolution, arguments, like=node))
    return True


def _affine(program: Program, node: fx.Node) -> tuple[Tensor, Tensor] | None:
    """Scale and shift of each channel, computed in float64; None where statistics or parameters are computed."""
    given = [argument(node, name) for name in ("running_mean", "running_var", "weight", "bias")]
    if given[0] is None or any(value is not None and program.constant(value) is None for value in given):
        return None
    mean, variance, gain, offset = (None if v is None else program.constant(v) for v in given)
    assert mean is not None
    assert variance is not None
    scale = (variance.detach().double() + argument(node, "eps")).rsqrt()
    scale = scale if gain is None else scale * gain.detach().double()
    shift = -mean.detach().double() * scale
    shift = shift if offset is None else shift + offset.detach().double()
    return scale.to(mean.dtype), shift.to(mean.dtype)
