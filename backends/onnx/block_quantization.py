"""Rules for weights in blocks: 4 or 8 bits in the file, and ONNX Runtime's kernels that read them so.

A linear becomes MatMulNBits, a choice among experts or embeddings GatherBlockQuantized, where ONNX Runtime's own
operators may be used. Elsewhere, and for whatever else reads such a weight, DequantizeLinear with a block size, of
opset 21.
"""

from __future__ import annotations

from dataclasses import dataclass

import onnx
import torch
from torch import Tensor, fx

from tersor.ir.block_operators import FAKE_QUANTIZE_BLOCKS, quantize_blocks

from .builder import Builder, Value
from .dtypes import tensor_proto
from .registry import Refusal, rule

CONTRIB = "com.microsoft"
_KINDS = {4: (onnx.TensorProto.INT4, onnx.TensorProto.UINT4), 8: (onnx.TensorProto.INT8, onnx.TensorProto.UINT8)}


@dataclass(frozen=True)
class Blocks:
    """A weight in blocks: its integers int8, scales, zero points int8, and how they lie."""

    name: str
    steps: Tensor
    scale: Tensor
    zero_point: Tensor
    axis: int
    block: int
    bits: int

    @property
    def symmetric(self) -> bool:
        """Whether zero is in the middle of every grid."""
        return not bool(self.zero_point.any())


@rule(FAKE_QUANTIZE_BLOCKS)
def fake_quantize_blocks(
    b: Builder, x: Value, scale: Value, zero_point: Value, axis: int, block: int, quant_min: int, quant_max: int
) -> str:
    if x.dtype != torch.float32:
        raise Refusal(f"quantizes {x.dtype}", "trace the model in float32")
    if not x.constant:
        raise Refusal("quantizes a computed value in blocks", "quantize weights in blocks, activations by tensor")
    tensors = [b.program.constant(argument) for argument in b.node.args[:3]]
    weight, factors, zeros = (tensor.detach() for tensor in tensors if tensor is not None)
    bits = 4 if quant_min >= -8 and quant_max <= 7 else 8
    if quant_min < -128 or quant_max > 127:
        raise Refusal(f"a grid of {quant_min}..{quant_max} does not fit 8 bits")
    steps = quantize_blocks(weight, factors, zeros, axis, block, quant_min, quant_max).to(torch.int8)
    source = b.node.args[0]
    assert isinstance(source, fx.Node)
    name = str(source.target)
    blocks = Blocks(name, steps, factors, zeros.to(torch.int8), axis % weight.dim(), block, bits)
    b.blocks[b.node] = blocks
    kind = _KINDS[bits][0]
    stored = b.initializer(name, lambda given: tensor_proto(given, blocks.steps, kind))
    zero = None
    if not blocks.symmetric:
        zero = b.initializer(f"{name}_zero_point", lambda given: tensor_proto(given, blocks.zero_point, kind))
    return b.op("DequantizeLinear", stored, scale, zero, axis=blocks.axis, block_size=block)


def blocks_of(b: Builder, place: int) -> Blocks | None:
    """The blocks of the argument at `place`, where it is such a weight and ONNX Runtime's operators may be used."""
    argument = b.node.args[place]
    return b.blocks.get(argument) if b.options.contrib and isinstance(argument, fx.Node) else None


def linear_of_blocks(b: Builder, x: Value, blocks: Blocks, bias: Value | None) -> str | None:
    """A linear as MatMulNBits; None where its weight lies another way."""
    if blocks.axis != 1 or blocks.steps.dim() != 2:
        return None
    rows, columns = blocks.steps.shape
    packed = b.initializer(f"{blocks.name}_packed", lambda name: tensor_proto(name, pack_rows(blocks)))
    scale = b.initializer(f"{blocks.name}_scales", lambda name: tensor_proto(name, blocks.scale.reshape(-1)))
    zero = None
    if not blocks.symmetric:
        zero = b.initializer(f"{blocks.name}_zeros", lambda name: tensor_proto(name, pack_zero_points(blocks)))
    return b.op(
        "MatMulNBits",
        x,
        packed,
        scale,
        zero,
        None,
        bias,
        domain=CONTRIB,
        K=columns,
        N=rows,
        bits=blocks.bits,
        block_size=blocks.block,
        accuracy_level=4 if b.options.int8_activations else 0,
    )


def rows_of_blocks(b: Builder, blocks: Blocks, indices: str) -> str | None:
    """Chosen entries of the first dimension, dequantized as they are read; None where no kernel does that."""
    last = blocks.axis == blocks.steps.dim() - 1
    if blocks.axis == 0 or (blocks.bits == 8 and not last):
        return None
    kind = _KINDS[blocks.bits][1]
    middle = 1 << (blocks.bits - 1)

    def unsigned(name: str, values: Tensor) -> onnx.TensorProto:
        shifted = (values.to(torch.int16) + middle).to(torch.uint8)
        return tensor_proto(name, shifted, kind)

    stored = b.initializer(f"{blocks.name}_rows", lambda name: unsigned(name, blocks.steps))
    scale = b.initializer(f"{blocks.name}_row_scales", lambda name: tensor_proto(name, blocks.scale))
    zero = b.initializer(f"{blocks.name}_row_zeros", lambda name: unsigned(name, blocks.zero_point))
    attributes = {"gather_axis": 0, "quantize_axis": blocks.axis, "block_size": blocks.block}
    extra = {"bits": 8} if blocks.bits == 8 else {}
    return b.op("GatherBlockQuantized", stored, indices, scale, zero, domain=CONTRIB, **attributes, **extra)


def pack_rows(blocks: Blocks) -> Tensor:
    """The integers as MatMulNBits reads them: uint8[rows, blocks, bytes], the first of two low."""
    rows, columns = blocks.steps.shape
    middle = 1 << (blocks.bits - 1)
    padded = torch.nn.functional.pad(blocks.steps, (0, -columns % blocks.block)).to(torch.int16) + middle
    packed = padded.to(torch.uint8).reshape(rows, -1, blocks.block)
    return packed if blocks.bits == 8 else packed[..., 0::2] | (packed[..., 1::2] << 4)


def pack_zero_points(blocks: Blocks) -> Tensor:
    """The zero points as MatMulNBits reads them: uint8, one a block, two to a byte at 4 bits, rows on whole bytes."""
    shifted = (blocks.zero_point.to(torch.int16) + (1 << (blocks.bits - 1))).to(torch.uint8)
    if blocks.bits == 8:
        return shifted.reshape(-1)
    padded = torch.nn.functional.pad(shifted, (0, shifted.shape[1] % 2))
    return (padded[:, 0::2] | (padded[:, 1::2] << 4)).reshape(-1)
