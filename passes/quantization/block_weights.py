"""Weights that can be quantized block by block, and the grids of their blocks."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, fx

from tersor.ir.block_operators import over_blocks
from tersor.ir.errors import CalibrationError, PassError
from tersor.ir.program import Program
from tersor.ir.shapes import KEY

aten = torch.ops.aten

BLOCKS = (16, 32, 64, 128, 256)
_SHRINKS = 24


@dataclass(frozen=True)
class BlockScheme:
    """How weights are quantized in blocks along the dimension that a product sums over.

    bits: 4 or 8. block: values that share a scale, 16 to 256, a power of two. symmetric: no zero points; zero is
    then in the middle of the grid, and a value takes less to store.
    """

    bits: int = 4
    block: int = 32
    symmetric: bool = True

    def __post_init__(self) -> None:
        if self.bits not in (4, 8):
            raise PassError("weights in blocks have 4 or 8 bits", found=self.bits)
        if self.block not in BLOCKS:
            raise PassError(
                "block is a power of two", expected=f"one of {', '.join(map(str, BLOCKS))}", found=self.block
            )

    @property
    def qmin(self) -> int:
        """The least stored value."""
        return -(1 << (self.bits - 1))

    @property
    def qmax(self) -> int:
        """The greatest stored value."""
        return (1 << (self.bits - 1)) - 1

    def __str__(self) -> str:
        return f"int{self.bits} {'symmetric' if self.symmetric else 'asymmetric'}, blocks of {self.block}"


INT4_BLOCKS = BlockScheme()
"""4 bits, symmetric, in blocks of 32."""


@dataclass(frozen=True)
class BlockWeight:
    """A constant weight, the nodes that read it, and the axis that their products sum over, counted from the end."""

    read: fx.Node
    users: tuple[fx.Node, ...]
    axis: int


def block_weights(program: Program) -> Iterator[BlockWeight]:
    """The weights of linears, and of the experts of a mixture: whole stacks of which an index picks what a product
    reads.

    A table of embeddings that is a linear's weight as well is one weight with both.
    """
    reads: dict[int, list[fx.Node]] = {}
    for node in program.graph.find_nodes(op="get_attr"):
        reads.setdefault(id(program.tensor(str(node.target))), []).append(node)
    for nodes in reads.values():
        found = {user: axis for node in nodes for user in node.users if (axis := _axis(user, node)) is not None}
        axes = {axis for axis in found.values() if axis}
        tensor = program.tensor(str(nodes[0].target))
        if len(axes) == 1 and tensor.is_floating_point() and tensor.dim() >= 2:
            yield BlockWeight(nodes[0], tuple(found), axes.pop())


def _axis(user: fx.Node, weight: fx.Node) -> int | None:
    """The axis that `user` sums the weight over; 0 where it may read a quantized weight but sums over none."""
    if user.target is aten.linear.default:
        return -1 if user.args[1] is weight and weight is not user.args[0] else None
    if user.target is aten.embedding.default:
        return 0 if user.args[0] is weight else None
    if not _picks_rows(user, weight) or weight.meta[KEY].dim() != 3:
        return None
    axes = {_product_axis(reader, user) for reader in user.users}
    return axes.pop() if len(axes) == 1 else None


def _picks_rows(node: fx.Node, weight: fx.Node) -> bool:
    """Whether the node picks entries of the weight's first dimension."""
    if node.args[0] is not weight:
        return False
    if node.target is aten.index.Tensor:
        indices = node.args[1]
        return isinstance(indices, list | tuple) and len(indices) == 1 and isinstance(indices[0], fx.Node)
    return node.target in (aten.index_select.default, aten.select.int) and bool(node.args[1] == 0)


def _product_axis(reader: fx.Node, operand: fx.Node) -> int | None:
    if reader.target is aten.linear.default:
        return -1 if reader.args[1] is operand else None
    if reader.target not in (aten.matmul.default, aten.bmm.default):
        if reader.target in (aten.transpose.int, aten.permute.default) and _swaps_last(reader):
            axes = {_product_axis(user, reader) for user in reader.users}
            axis = axes.pop() if len(axes) == 1 else None
            return None if axis is None else -3 - axis
        return None
    return -1 if reader.args[0] is operand else -2


def _swaps_last(node: fx.Node) -> bool:
    rank = node.meta[KEY].dim()
    if node.target is aten.transpose.int:
        return sorted(int(dim) % rank for dim in node.args[1:3]) == [rank - 2, rank - 1]  # type: ignore[arg-type]
    order = [int(dim) % rank for dim in node.args[1]]  # type: ignore[arg-type, union-attr]  # a list of ints
    return order == [*range(rank - 2), rank - 1, rank - 2]


def block_grid(weight: Tensor, axis: int, scheme: BlockScheme) -> tuple[Tensor, Tensor]:
    """Scales float32 and zero points int32 with the least squared error of each block, one entry a block along `axis`.

    A block's range is shrunk in steps and the best kept. A block of zeros has scale 1.

    Raises CalibrationError where the weight holds NaN or infinity.
    """
    values = weight.detach().float().movedim(axis, -1)
    if not bool(torch.isfinite(values).all()):
        raise CalibrationError("a weight is not finite", found=f"{int((~torch.isfinite(values)).sum())} values")
    size = values.shape[-1]
    padded = torch.nn.functional.pad(values, (0, -size % scheme.block)).unflatten(-1, (-1, scheme.block))
    best_scale, best_zero = _fit(padded, 1.0, scheme)
    least = _block_error(padded, best_scale, best_zero, scheme)
    for step in range(1, _SHRINKS):
        scale, zero = _fit(padded, 1 - 0.5 * step / _SHRINKS, scheme)
        error = _block_error(padded, scale, zero, scheme)
        better = error < least
        best_scale, best_zero = torch.where(better, scale, best_scale), torch.where(better, zero, best_zero)
        least = torch.where(better, error, least)
    return best_scale.movedim(-1, axis).contiguous(), best_zero.int().movedim(-1, axis).contiguous()


def _fit(blocks: Tensor, share: float, scheme: BlockScheme) -> tuple[Tensor, Tensor]:
    """Scale and zero point of each block's range times `share`."""
    if scheme.symmetric:
        scale = blocks.abs().amax(-1) * share / (scheme.qmax + 0.5)
        zero = torch.zeros_like(scale)
    else:
        low, high = blocks.amin(-1).clamp(max=0) * share, blocks.amax(-1).clamp(min=0) * share
        scale = (high - low) / (scheme.qmax - scheme.qmin)
        safe = torch.where(scale > torch.finfo(torch.float32).tiny, scale, 1.0)
        zero = (scheme.qmin - torch.round(low / safe)).clamp(scheme.qmin, scheme.qmax)
    return torch.where(scale > torch.finfo(torch.float32).tiny, scale, 1.0), zero


def _block_error(blocks: Tensor, scale: Tensor, zero: Tensor, scheme: BlockScheme) -> Tensor:
    steps = torch.div(blocks, scale.unsqueeze(-1)).round_().add_(zero.unsqueeze(-1)).clamp_(scheme.qmin, scheme.qmax)
    return steps.sub_(zero.unsqueeze(-1)).mul_(scale.unsqueeze(-1)).sub_(blocks).square_().sum(-1)


def on_blocks(weight: Tensor, axis: int, scheme: BlockScheme) -> Tensor:
    """A weight rounded to the grids that `block_grid` finds."""
    scale, zero = block_grid(weight, axis, scheme)
    scale, zero = (over_blocks(part, axis, scheme.block, weight.shape[axis]) for part in (scale, zero))
    steps = torch.round(weight / scale).add_(zero).clamp_(scheme.qmin, scheme.qmax)
    return (steps - zero) * scale
