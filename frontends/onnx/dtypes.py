"""ONNX element types and the torch types that hold them."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from onnx import TensorProto

from tersor.ir.errors import TraceError

DTYPES: dict[int, torch.dtype] = {
    TensorProto.FLOAT: torch.float32,
    TensorProto.DOUBLE: torch.float64,
    TensorProto.FLOAT16: torch.float16,
    TensorProto.BFLOAT16: torch.bfloat16,
    TensorProto.FLOAT8E4M3FN: torch.float8_e4m3fn,
    TensorProto.FLOAT8E4M3FNUZ: torch.float8_e4m3fnuz,
    TensorProto.FLOAT8E5M2: torch.float8_e5m2,
    TensorProto.FLOAT8E5M2FNUZ: torch.float8_e5m2fnuz,
    TensorProto.BOOL: torch.bool,
    TensorProto.INT8: torch.int8,
    TensorProto.INT16: torch.int16,
    TensorProto.INT32: torch.int32,
    TensorProto.INT64: torch.int64,
    TensorProto.UINT8: torch.uint8,
    TensorProto.UINT16: torch.uint16,
    TensorProto.UINT32: torch.uint32,
    TensorProto.UINT64: torch.uint64,
    TensorProto.COMPLEX64: torch.complex64,
    TensorProto.COMPLEX128: torch.complex128,
}

WIDENED: dict[int, torch.dtype] = {TensorProto.INT4: torch.int8, TensorProto.UINT4: torch.uint8}
"""Types of initializers that torch stores wider."""

ONNX_TYPES = {dtype: onnx_type for onnx_type, dtype in DTYPES.items()}


@dataclass(frozen=True)
class Grid:
    """A quantized type: the least and greatest integer that the IR stores, and what is added to make them signed."""

    low: int
    high: int
    shift: int

    def within(self, bounds: tuple[int, int] | None) -> Grid:
        """The part of the grid between two integers as the file has them, before the shift."""
        if bounds is None:
            return self
        low, high = (bound + self.shift for bound in bounds)
        return Grid(max(low, self.low), min(high, self.high), self.shift)


GRIDS: dict[int, Grid] = {
    TensorProto.INT8: Grid(-128, 127, 0),
    TensorProto.UINT8: Grid(-128, 127, -128),
    TensorProto.INT16: Grid(-32768, 32767, 0),
    TensorProto.UINT16: Grid(-32768, 32767, -32768),
    TensorProto.INT4: Grid(-8, 7, 0),
    TensorProto.UINT4: Grid(-8, 7, -8),
}
"""Quantized types as grids of the IR, which stores signed integers: uint8 less 128 stands for the same numbers."""


def name_of(onnx_type: int) -> str:
    """`FLOAT`, `STRING`..., or the number of a type that the installed onnx does not know."""
    known: dict[int, str] = {number: name for name, number in TensorProto.DataType.items()}
    return known.get(onnx_type, str(onnx_type))


def dtype_of(onnx_type: int) -> torch.dtype:
    """The torch type of tensors at run time. Raises TraceError for strings and types below 8 bits."""
    try:
        return DTYPES[onnx_type]
    except KeyError:
        raise TraceError(
            f"torch has no tensors of ONNX type {name_of(onnx_type)}", expected=", ".join(map(name_of, DTYPES))
        ) from None
