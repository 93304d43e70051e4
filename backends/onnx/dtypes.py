"""Element types, and tensors as ONNX stores them."""

from __future__ import annotations

import onnx
import torch
from torch import Tensor, nn

from tersor.ir.names import TRAINED

from .registry import Refusal

T = onnx.TensorProto
ELEMENT_TYPES: dict[torch.dtype, int] = {
    torch.float32: T.FLOAT,
    torch.float64: T.DOUBLE,
    torch.float16: T.FLOAT16,
    torch.bfloat16: T.BFLOAT16,
    torch.int8: T.INT8,
    torch.int16: T.INT16,
    torch.int32: T.INT32,
    torch.int64: T.INT64,
    torch.uint8: T.UINT8,
    torch.uint16: T.UINT16,
    torch.uint32: T.UINT32,
    torch.uint64: T.UINT64,
    torch.bool: T.BOOL,
    torch.complex64: T.COMPLEX64,
    torch.complex128: T.COMPLEX128,
}


def element_type(dtype: torch.dtype) -> int:
    """ONNX's number for a dtype. Raises Refusal where it has none."""
    if dtype not in ELEMENT_TYPES:
        raise Refusal(f"ONNX has no element type for {str(dtype).removeprefix('torch.')}")
    return ELEMENT_TYPES[dtype]


def tensor_proto(name: str, tensor: Tensor, kind: int | None = None) -> onnx.TensorProto:
    """A tensor with its values in little-endian bytes; `kind` INT4 or UINT4 packs two to a byte, low half first.

    ONNX does not tell parameters from other tensors: floats that are none carry a note, which `load_onnx` reads.
    """
    flat = tensor.detach().cpu().contiguous().reshape(-1)
    if kind in (T.INT4, T.UINT4):
        padded = torch.nn.functional.pad(flat, (0, flat.numel() % 2)).to(torch.uint8) & 0xF
        flat = padded[::2] | (padded[1::2] << 4)
    data = flat.view(torch.uint8).numpy().tobytes() if flat.numel() else b""
    data_type = element_type(tensor.dtype) if kind is None else kind
    proto = onnx.TensorProto(name=name, data_type=data_type, dims=list(tensor.shape), raw_data=data)
    if tensor.is_floating_point() and tensor.dim() and not isinstance(tensor, nn.Parameter):
        proto.metadata_props.add(key=TRAINED, value="no")
    return proto
