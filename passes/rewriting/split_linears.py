"""A linear whose result is cut in parts as one linear a part."""

from __future__ import annotations

import operator
from dataclasses import dataclass

import torch
from torch import Tensor, fx, nn

from tersor.ir.operators import FAKE_QUANTIZE, FAKE_QUANTIZE_BIAS
from tersor.ir.program import Program
from tersor.ir.shapes import KEY
from tersor.ir.sparsity import NM

from ..arguments import argument
from ..base import Pass, PassResult, on_the_cpu

aten = torch.ops.aten

_CUTS = frozenset({aten.split.Tensor, aten.split_with_sizes.default, aten.chunk.default})


@dataclass(frozen=True)
class SplitLinears(Pass):
    """Cut a linear with a quantized weight where its result is cut, as query, key and value often come.

        %linear = linear(%x, %w, %b)                    %linear_part = linear(%x, %w[:64], %b[:64])
        %split = split_with_sizes(%linear, [64, 128])   %linear_part_1 = linear(%x, %w[64:], %b[64:])
        %q = getitem(%split, 0)
        %kv = getitem(%split, 1)

    TensorRT joins linears of one input by itself, in int8. Where it finds them joined and cut, it cuts weights that it
    first made floats of, and the product is a float one.
    """

    @on_the_cpu
    def run(self, program: Program) -> PassResult:
        """Look at every linear whose weight is on a grid of one scale, or of one a channel."""
        cut = 0
        for node in list(program.graph.find_nodes(op="call_function", target=aten.linear.default)):
            split = _cut_of(node)
            if split is None or not _is_constant(program, node):
                continue
            _cut(program, node, split)
            cut += 1
        return PassResult(program, bool(cut), (f"{cut} linears cut where their results are",) if cut else ())


def _cut_of(node: fx.Node) -> fx.Node | None:
    """What cuts the whole result along its last dimension, where nothing else reads it."""
    users = list(node.users)
    if len(users) != 1 or users[0].target not in _CUTS:
        return None
    dim, rank = argument(users[0], "dim"), node.meta[KEY].dim()
    parts = all(user.target is operator.getitem for user in users[0].users)
    return users[0] if parts and isinstance(dim, int) and dim % rank == rank - 1 else None


def _is_constant(program: Program, node: fx.Node) -> bool:
    weight, bias = node.args[1], argument(node, "bias")
    if not isinstance(weight, fx.Node) or weight.target is not FAKE_QUANTIZE or weight.args[3] not in (0, None):
        return False
    whole = bias.args[0] if isinstance(bias, fx.Node) and bias.target is FAKE_QUANTIZE_BIAS else bias
    return program.constant(weight.args[0]) is not None and (bias is None or program.constant(whole) is not None)


def _cut(program: Program, node: fx.Node, split: fx.Node) -> None:
    sizes = [part.shape[-1] for part in split.meta[KEY]]
    with program.graph.inserting_before(split):
        for pick in list(split.users):
            place = pick.args[1]
            assert isinstance(place, int)
            start = sum(sizes[:place])
            program.replace(pick, _part(program, node, slice(start, start + sizes[place])))


def _part(program: Program, node: fx.Node, rows: slice) -> fx.Node:
    """The linear of some rows of the weight."""
    grid, bias = node.args[1], argument(node, "bias")
    assert isinstance(grid, fx.Node)
    source, scale, zero, axis, low, high = grid.args
    weight = _rows(program, source, rows)
    factors, zeros = (_rows(program, value, rows) if axis == 0 else value for value in (scale, zero))
    weight = program.call(FAKE_QUANTIZE, (weight, factors, zeros, axis, low, high), like=grid)
    if isinstance(bias, fx.Node) and bias.target is FAKE_QUANTIZE_BIAS:
        steps = _rows(program, bias.args[0], rows)
        bias = program.call(FAKE_QUANTIZE_BIAS, (steps, bias.args[1], factors), like=bias)
    elif bias is not None:
        bias = _rows(program, bias, rows)
    arguments = (node.args[0], weight) if bias is None else (node.args[0], weight, bias)
    return program.call(aten.linear.default, arguments, like=node, name=f"{node.name}_part")


def _rows(program: Program, read: object, rows: slice) -> fx.Node:
    """A new tensor of the program with some rows of another, read here; 2:4 sparsity holds for each row."""
    assert isinstance(read, fx.Node)
    name = str(read.target)
    whole = program.tensor(name)
    part: Tensor = whole.detach()[rows].clone()
    kept = nn.Parameter(part, whole.requires_grad) if isinstance(whole, nn.Parameter) else part
    new = program.add_tensor(f"{name}_rows_{rows.start}", kept)
    pattern = program.sparsity.get(name)
    if isinstance(pattern, NM):
        program.sparsity[new] = pattern
    return program.attribute(new)
