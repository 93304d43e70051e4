"""Batch norm with fixed statistics, as part of the layer beside it."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, fx, nn

from tersor.ir.program import REPLACES, Program
from tersor.ir.shapes import KEY
from tersor.ir.stage import Stage

from ..arguments import argument, set_argument
from ..base import Pass, PassResult, on_the_cpu
from ..progress import track

aten = torch.ops.aten


@dataclass(frozen=True)
class _Layer:
    """spatial: how many axes follow the channels. transposed: weights are [in, out / groups, ...]."""

    spatial: int
    transposed: bool = False


_LAYERS: dict[Any, _Layer] = {
    aten.linear.default: _Layer(0),
    aten.conv1d.default: _Layer(1),
    aten.conv1d.padding: _Layer(1),
    aten.conv2d.default: _Layer(2),
    aten.conv2d.padding: _Layer(2),
    aten.conv3d.default: _Layer(3),
    aten.conv3d.padding: _Layer(3),
    aten.conv_transpose1d.default: _Layer(1, transposed=True),
    aten.conv_transpose2d.input: _Layer(2, transposed=True),
    aten.conv_transpose3d.input: _Layer(3, transposed=True),
}


@dataclass(frozen=True)
class FoldBatchNorm(Pass):
    """Multiply batch norm's scale into the weights of the convolution or linear layer before it, or else after it.

        %conv2d = conv2d(%x, @c.weight)                        %conv2d = conv2d(%x, @c.weight, @c.bias)
        %batch_norm = batch_norm(%conv2d, ..., False, ...)

    With scale = weight / sqrt(var + eps) and shift = bias - mean * scale, computed in float64: the layer before gets
    weight * scale and bias * scale + shift; a layer after gets weight * scale and bias + weight . shift, the latter
    only where it pads nothing, since batch norm's shift does not reach zeros that are padded after it.
    (Jacob et al. 2018, arXiv:1712.05877, section 3.2.)

    The layer before has to have no other user; after, every user has to be such a layer. Weights that several layers
    share are copied for the layer that changes. Batch norm that trains, or that has no such neighbour, stays, and a
    note says so. The layer then stands for the batch norm: its node's "replaces" names it.
    """

    takes: ClassVar[frozenset[Stage]] = frozenset({Stage.FLOAT})

    @on_the_cpu
    def run(self, program: Program) -> PassResult:
        """Fold every batch norm that can be, in graph order."""
        nodes = program.graph.find_nodes(op="call_function", target=aten.batch_norm.default)
        weights = _Weights(program)
        left: dict[str, list[str]] = defaultdict(list)
        for node in track(nodes, "fold batch norm"):
            reason = _fold(node, weights)
            if reason is not None:
                left[reason].append(f"%{node.name}")
        weights.store()
        folded = len(nodes) - sum(map(len, left.values()))
        notes = [f"batch norms folded: {folded}"] if folded else []
        notes += [f"batch norms left: {len(names)}, {reason}: {_some(names)}" for reason, names in left.items()]
        return PassResult(program, folded > 0, tuple(notes))


def _some(names: list[str]) -> str:
    return ", ".join(names[:3]) + (", ..." if len(names) > 3 else "")


class _Weights:
    """The weights as they will be: what changes is collected, and stored at the end in one go."""

    def __init__(self, program: Program) -> None:
        self.program = program
        self._changed: dict[str, Tensor] = {}
        self._readers: dict[int, set[fx.Node]] = defaultdict(set)
        for read in program.graph.find_nodes(op="get_attr"):
            self._readers[id(program.tensor(str(read.target)))] |= set(read.users)

    def value(self, node: object) -> Tensor | None:
        """The tensor that a node reads, in float64; None for a node that reads none."""
        if not isinstance(node, fx.Node) or node.op != "get_attr":
            return None
        name = str(node.target)
        return self._changed.get(name, self.program.tensor(name)).detach().double()

    def put(self, layer: fx.Node, name: str, value: Tensor) -> None:
        """Let `layer` read this value for its weight or bias."""
        weight: Any = argument(layer, "weight")
        read: Any = argument(layer, name)
        like = self.program.tensor(str(weight.target))
        value = value.to(like.dtype)
        if read is not None and self._readers[id(self.program.tensor(str(read.target)))] <= {layer}:
            self._changed[str(read.target)] = value
            return
        new = nn.Parameter(value, like.requires_grad) if isinstance(like, nn.Parameter) else value
        given = str(read.target) if read is not None else _bias_name(str(weight.target))
        added = self.program.add_tensor(given, new)
        self._readers[id(new)] = {layer}
        if given in self.program.sparsity and read is not None:
            self.program.sparsity[added] = self.program.sparsity[given]
        with self.program.graph.inserting_before(layer):
            set_argument(layer, name, self.program.attribute(added))

    def store(self) -> None:
        """Write what changed into the program."""
        self.program.set_tensors(self._changed)


def _bias_name(weight: str) -> str:
    owner, _, leaf = weight.rpartition(".")
    bias = "bias" if leaf == "weight" else f"{leaf}_bias"
    return f"{owner}.{bias}" if owner else bias


def _fold(node: fx.Node, weights: _Weights) -> str | None:
    """Fold one batch norm; the reason where it stays."""
    if argument(node, "training"):
        return "in training mode"
    affine = _affine(node, weights)
    if affine is None:
        return "with statistics that are computed"
    scale, shift = affine
    before: Any = node.args[0]
    if _is_layer(before, weights) and len(before.users) == 1:
        _fold_before(before, scale, shift, weights)
        before.meta[REPLACES] = node.meta.get(REPLACES, node.name)
    elif node.users and all(_takes(user, node, shift, weights) for user in node.users):
        for user in list(node.users):
            _fold_after(user, scale, shift, weights)
    else:
        return "with no convolution or linear layer beside it that could take it"
    weights.program.replace(node, before)
    return None


def _affine(node: fx.Node, weights: _Weights) -> tuple[Tensor, Tensor] | None:
    """Batch norm as x * scale + shift, float64[channels] each; None where its numbers are not stored tensors."""
    mean, variance = (weights.value(argument(node, name)) for name in ("running_mean", "running_var"))
    if mean is None or variance is None:
        return None
    gain = torch.ones_like(mean) if argument(node, "weight") is None else weights.value(argument(node, "weight"))
    offset = torch.zeros_like(mean) if argument(node, "bias") is None else weights.value(argument(node, "bias"))
    if gain is None or offset is None:
        return None
    scale = gain / torch.sqrt(variance + argument(node, "eps"))
    return scale, offset - mean * scale


def _is_layer(node: Any, weights: _Weights) -> bool:
    """Whether it is a layer with stored weights, whose channels stand in the axis that batch norm takes them from."""
    layer = _LAYERS.get(getattr(node, "target", None))
    if layer is None or node.meta[KEY].dim() != layer.spatial + 2:
        return False
    bias = argument(node, "bias")
    return weights.value(argument(node, "weight")) is not None and (bias is None or weights.value(bias) is not None)


def _takes(user: fx.Node, node: fx.Node, shift: Tensor, weights: _Weights) -> bool:
    """Whether a layer after a batch norm can take it in."""
    if not _is_layer(user, weights) or user.args[0] is not node or user.all_input_nodes.count(node) != 1:
        return False
    return not shift.any() or (not _LAYERS[user.target].transposed and not _pads(user))


def _pads(layer: fx.Node) -> bool:
    if layer.target is aten.linear.default:
        return False
    padding = argument(layer, "padding")
    return padding != "valid" if isinstance(padding, str) else any([padding] if isinstance(padding, int) else padding)


def _fold_before(layer: fx.Node, scale: Tensor, shift: Tensor, weights: _Weights) -> None:
    weight, bias = weights.value(argument(layer, "weight")), weights.value(argument(layer, "bias"))
    assert weight is not None
    axis = 2 if _LAYERS[layer.target].transposed else 1
    weights.put(layer, "bias", shift if bias is None else bias * scale + shift)
    weights.put(layer, "weight", (_grouped(weight, layer) * _along(scale, axis, weight, layer)).reshape(weight.shape))


def _fold_after(layer: fx.Node, scale: Tensor, shift: Tensor, weights: _Weights) -> None:
    weight, bias = weights.value(argument(layer, "weight")), weights.value(argument(layer, "bias"))
    assert weight is not None
    axis = 1 if _LAYERS[layer.target].transposed else 2
    if shift.any():
        reached = (_grouped(weight, layer) * _along(shift, axis, weight, layer)).flatten(2).sum(2).flatten()
        weights.put(layer, "bias", reached if bias is None else bias + reached)
    weights.put(layer, "weight", (_grouped(weight, layer) * _along(scale, axis, weight, layer)).reshape(weight.shape))


def _grouped(weight: Tensor, layer: fx.Node) -> Tensor:
    """Weights as [groups, out / groups, in / groups, ...], or with in before out for a transposed convolution."""
    groups = 1 if layer.target is aten.linear.default else argument(layer, "groups")
    grouped: Tensor = weight.unflatten(0, (groups, -1))
    return grouped


def _along(values: Tensor, axis: int, weight: Tensor, layer: fx.Node) -> Tensor:
    """One value a channel, shaped to multiply grouped weights along axis 1 or 2."""
    grouped = _grouped(weight, layer)
    shape = [1] * grouped.dim()
    shape[0], shape[axis] = grouped.shape[0], grouped.shape[axis]
    return values.reshape(shape)
