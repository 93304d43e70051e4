"""Batch norm that trains while the weights are rounded as they will be once it is folded into them.

Folding multiplies a weight by scale = weight / sqrt(var + eps) of the batch norm after it, and grids are those of the
product. So that is what has to be rounded, while batch norm itself goes on normalizing (Krishnamoorthi 2018,
arXiv:1806.08342, section 3.2.2):

    %conv = conv2d(%x, fake_quantize(@w))      ->      %conv = conv2d(%x, fake_quantize(@w * scale))
                                                       %norm = batch_norm(%conv / scale, ...)

With frozen statistics both sides are equal, and `fold_simulated` writes the left one.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch
from torch import Tensor, fx, nn

from tersor.ir.operators import FAKE_QUANTIZE
from tersor.ir.program import Program
from tersor.ir.shapes import KEY
from tersor.ir.stage import Stage

from ..arguments import argument
from ..base import Pass, PassResult, Promise
from ..quantization.calibrate import quantize_bias_of
from ..quantization.quantize import Quantize
from ..quantization.roles import WEIGHTS

aten = torch.ops.aten
_BATCH_NORM = aten.batch_norm.default
_LEAST_GAIN = 1e-4
"""A batch norm with a channel whose gain is below this stays folded: nothing can be divided by it."""


@dataclass(frozen=True)
class QuantizeBeforeFolding(Pass):
    """`Quantize`, and then batch norms beside their layers again, each with the grids of its folded layer.

    Those that cannot be told apart any more (equalized layers, a weight with several readers) stay folded.
    """

    takes: ClassVar[frozenset[Stage]] = frozenset({Stage.FLOAT})
    gives: ClassVar[Stage | None] = Stage.FAKE_QUANT
    promise: ClassVar[Promise] = Promise.APPROXIMATE

    quantize: Quantize = field(default_factory=Quantize)

    def run(self, program: Program) -> PassResult:
        """Quantize, and unfold."""
        result = self.quantize.run(program.copy())
        quantized = result.program
        nodes = {node.name: node for node in quantized.graph.nodes}
        norms = program.graph.find_nodes(op="call_function", target=_BATCH_NORM)
        count = sum(_unfold(quantized, nodes, program, norm) for norm in norms)
        return PassResult(quantized, True, (*result.notes, f"{count} of {len(norms)} batch norms train unfolded"))


def _unfold(quantized: Program, nodes: dict[str, fx.Node], program: Program, norm: fx.Node) -> bool:
    """Put one batch norm back after its layer; False where it has to stay folded."""
    before: Any = norm.args[0]
    layer = nodes.get(before.name)
    if layer is None or layer.target is not before.target or layer.target not in WEIGHTS or norm.name in nodes:
        return False
    rounded: Any = layer.args[1]
    folded = quantized.constant(rounded.args[0]) if rounded.target is FAKE_QUANTIZE else None
    weight, bias = program.constant(before.args[1]), _constant(program, before, "bias")
    tensors = [program.constant(argument(norm, name)) for name in ("weight", "bias", "running_mean", "running_var")]
    if folded is None or weight is None or len(rounded.users) > 1 or len(rounded.args[0].users) > 1:
        return False
    if any(tensor is None for tensor in tensors):
        return False
    gain, _, _, variance = (tensor.detach() for tensor in tensors if tensor is not None)
    scale = gain / torch.sqrt(variance + argument(norm, "eps"))
    expected = weight.detach() * scale.reshape(-1, *[1] * (weight.dim() - 1))
    if bool((gain.abs() < _LEAST_GAIN).any()) or not torch.allclose(expected, folded.detach(), rtol=1e-3, atol=1e-6):
        return False
    _write(quantized, layer, rounded, norm, (weight, bias, *tensors))
    return True


def _constant(program: Program, node: fx.Node, name: str) -> Tensor | None:
    return program.constant(argument(node, name))


def _write(program: Program, layer: fx.Node, rounded: Any, norm: fx.Node, tensors: tuple[Any, ...]) -> None:
    weight, bias, *affine = tensors
    read, rank = rounded.args[0], layer.meta[KEY].dim()
    program.set_tensor(str(read.target), weight.detach().clone())
    names = [
        program.add_tensor(str(source.target), _copied(tensor))  # type: ignore[union-attr]  # a get_attr
        for source, tensor in zip(norm.args[1:5], affine, strict=True)
    ]
    with program.graph.inserting_before(rounded):
        gain, shift, mean, variance = (program.attribute(name) for name in names)
        raised = program.call(aten.add.Tensor, (variance, argument(norm, "eps")), like=norm)
        inverse = program.call(aten.rsqrt.default, (raised,), like=norm)
        scale = program.call(aten.mul.Tensor, (gain, inverse), like=norm)
        rows = program.call(aten.reshape.default, (scale, [-1, *[1] * (weight.dim() - 1)]), like=norm)
        product = program.call(aten.mul.Tensor, (read, rows), like=layer, name=f"{layer.name}_folded")
    rounded.update_arg(0, product)
    users = list(layer.users)
    layer.args = (*layer.args[:2], None, *layer.args[3:])
    with program.graph.inserting_before(layer.next):
        wide = program.call(aten.reshape.default, (scale, [1, -1, *[1] * (rank - 2)]), like=norm)
        value = program.call(aten.div.Tensor, (layer, wide), like=layer, name=f"{layer.name}_unscaled")
        if bias is not None:
            name = program.add_tensor(f"{layer.name}.unfolded_bias", nn.Parameter(bias.detach().clone()))
            column = program.call(
                aten.reshape.default, (program.attribute(name), [1, -1, *[1] * (rank - 2)]), like=layer
            )
            value = program.call(aten.add.Tensor, (value, column), like=layer)
        rest = norm.args[5:]
        value = program.call(_BATCH_NORM, (value, gain, shift, mean, variance, *rest), like=norm, name=norm.name)
    for user in users:
        user.replace_input_with(layer, value)


def _copied(tensor: Tensor) -> Tensor:
    value = tensor.detach().clone()
    return nn.Parameter(value) if isinstance(tensor, nn.Parameter) else value


@dataclass(frozen=True)
class FoldSimulated(Pass):
    """Fold what `QuantizeBeforeFolding` put back, once statistics are frozen; biases are rounded from then on."""

    takes: ClassVar[frozenset[Stage]] = frozenset({Stage.FAKE_QUANT})
    promise: ClassVar[Promise] = Promise.APPROXIMATE

    def run(self, program: Program) -> PassResult:
        """Fold them all."""
        count = fold_simulated(program)
        return PassResult(program, count > 0, (f"batch norms folded: {count}",))


def fold_simulated(program: Program) -> int:
    """Fold every batch norm that was put back, with its running statistics, in place; returns how many.

    Biases go onto the grids of their accumulators.
    """
    count = 0
    for norm in program.graph.find_nodes(op="call_function", target=_BATCH_NORM):
        found = _simulated(norm)
        if found is not None:
            _fold(program, norm, *found)
            count += 1
    if count:
        program.graph.eliminate_dead_code()
        program.remove_unused_tensors()
        program.changed()
    return count


def _simulated(norm: fx.Node) -> tuple[fx.Node, Any] | None:
    """The layer of a batch norm that was put back, and its own bias if it has one."""
    value: Any = norm.args[0]
    bias = None
    if value.target is aten.add.Tensor:
        value, bias = value.args
    if getattr(value, "target", None) is not aten.div.Tensor or not value.name.endswith("_unscaled"):
        return None
    layer: fx.Node = value.args[0]
    return layer, bias


def _fold(program: Program, norm: fx.Node, layer: fx.Node, bias: Any) -> None:
    rounded: Any = layer.args[1]
    product = rounded.args[0]
    read = product.args[0]
    gain, shift, mean, variance = (evaluated(program, node).double() for node in norm.args[1:5])
    scale = gain / torch.sqrt(variance + argument(norm, "eps"))
    own = torch.zeros_like(mean) if bias is None else evaluated(program, bias).double().flatten()
    name = program.add_tensor(f"{layer.name}_bias", nn.Parameter((shift + (own - mean) * scale).float()))
    program.set_tensor(str(read.target), evaluated(program, product))
    rounded.update_arg(0, read)
    with program.graph.inserting_before(layer):
        layer.args = (*layer.args[:2], program.attribute(name), *layer.args[3:])
    norm.replace_all_uses_with(layer)
    program.graph.erase_node(norm)
    program.graph.eliminate_dead_code()
    quantize_bias_of(program, layer, WEIGHTS[layer.target])


def evaluated(program: Program, node: Any) -> Tensor:
    """The value of a node that depends on no input."""
    if node.op == "get_attr":
        return program.tensor(str(node.target)).detach()
    args = fx.node.map_arg(node.args, lambda source: evaluated(program, source))
    with torch.no_grad():
        value: Tensor = node.target(*args, **node.kwargs)
    return value
