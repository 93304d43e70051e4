"""ONNX tensors as torch tensors: data in the model's file copied once, data beside it mapped."""

from __future__ import annotations

from dataclasses import dataclass
from math import prod
from pathlib import Path

import numpy as np
import torch
from onnx import TensorProto, numpy_helper
from torch import Tensor

from tersor.ir.errors import TraceError

from .budget import MOST_AXES, Budget
from .dtypes import DTYPES, WIDENED, dtype_of, name_of

LIMIT = 1 << 44
"""Bytes that no tensor has; sizes beyond come from damaged files."""
_SHOWN = 200


@dataclass(frozen=True)
class Reader:
    """Reads the tensors of one file, as long as its budget lasts."""

    folder: Path
    budget: Budget

    def read(self, proto: TensorProto, *, once: bool = False) -> Tensor:
        """As `read_tensor`. once: it is read one time, not in each turn of a loop. Raises TraceError."""
        tensor = read_tensor(proto, self.folder)
        if proto.data_location != TensorProto.EXTERNAL:
            self.budget.read(tensor.numel(), tensor.nbytes)
        elif once:
            self.budget.stored(tensor.numel(), tensor.nbytes)
        return tensor


def read_tensor(proto: TensorProto, folder: Path) -> Tensor:
    """The tensor that an ONNX tensor stands for; int4 and uint4 as 8-bit integers.

    External data is mapped copy-on-write, so that it takes memory only as it is read, and is looked for inside
    `folder` alone. Raises TraceError where type, sizes and data do not fit.
    """
    dtype = WIDENED.get(proto.data_type) or dtype_of(proto.data_type)
    shape = list(proto.dims)
    if not possible(shape, dtype):
        raise TraceError(f"tensor {proto.name!r} has impossible sizes", found=shape[:MOST_AXES])
    count = prod(shape)
    if proto.data_location == TensorProto.EXTERNAL:
        return _external(proto, folder, dtype, shape)
    if proto.HasField("raw_data") and proto.data_type in DTYPES:
        _expect_bytes(proto, len(proto.raw_data), count * dtype.itemsize)
        return _from_bytes(bytearray(proto.raw_data), dtype, shape)
    return _from_fields(proto, dtype, shape)


def possible(shape: list[int], dtype: torch.dtype) -> bool:
    """Whether a tensor may have these sizes."""
    if len(shape) > MOST_AXES or any(size < 0 for size in shape):
        return False
    return prod(max(size, 1) for size in shape) * dtype.itemsize <= LIMIT


def _from_bytes(data: bytearray, dtype: torch.dtype, shape: list[int]) -> Tensor:
    return (torch.frombuffer(data, dtype=dtype) if data else torch.empty(0, dtype=dtype)).reshape(shape)


def _expect_bytes(proto: TensorProto, found: int, expected: int) -> None:
    if found != expected:
        raise TraceError(
            f"the data of tensor {proto.name!r} does not fit its sizes",
            expected=f"{expected} bytes for {name_of(proto.data_type)} {list(proto.dims)}",
            found=f"{found} bytes",
        )


def _from_fields(proto: TensorProto, dtype: torch.dtype, shape: list[int]) -> Tensor:
    """Data in the typed fields, or packed: two values a byte."""
    try:
        array = numpy_helper.to_array(proto)
    except (ValueError, TypeError, OverflowError) as error:
        raise TraceError(f"tensor {proto.name!r} cannot be read: {error}", found=name_of(proto.data_type)) from error
    if proto.data_type in WIDENED:
        array = array.astype(np.int8 if proto.data_type == TensorProto.INT4 else np.uint8)
    return _from_bytes(bytearray(np.ascontiguousarray(array).tobytes()), dtype, shape)


def _external(proto: TensorProto, folder: Path, dtype: torch.dtype, shape: list[int]) -> Tensor:
    fields = {entry.key: entry.value for entry in proto.external_data}
    path = _inside(folder, fields.get("location", ""), proto.name)
    packed = proto.data_type in WIDENED
    count = prod(shape)
    size = (count + 1) // 2 if packed else count * dtype.itemsize
    offset = _number(fields.get("offset", "0"), proto.name)
    _expect_bytes(proto, _number(fields.get("length", str(size)), proto.name), size)
    if offset + size > path.stat().st_size:
        raise TraceError(
            f"the data of tensor {proto.name!r} lies beyond the end of {path}",
            expected=f"bytes {offset} to {offset + size}",
            found=f"{path.stat().st_size} bytes",
        )
    if not size:
        return torch.empty(shape, dtype=dtype)
    mapped = torch.from_numpy(np.memmap(path, np.uint8, "c", offset, (size,)))
    return _unpacked(mapped, count, dtype, shape) if packed else _typed(mapped, dtype, offset).reshape(shape)


def _typed(data: Tensor, dtype: torch.dtype, offset: int) -> Tensor:
    """Bytes as values; copied where they do not lie on a multiple of the type's size."""
    return (data if offset % dtype.itemsize == 0 else data.clone()).view(dtype)


def _unpacked(data: Tensor, count: int, dtype: torch.dtype, shape: list[int]) -> Tensor:
    """Two 4-bit values a byte, the low half first."""
    values = torch.stack([data & 15, data >> 4], dim=1).flatten()[:count].reshape(shape)
    return values if dtype is torch.uint8 else ((values.to(torch.int8) ^ 8) - 8)


def _inside(folder: Path, location: str, name: str) -> Path:
    """The file of external data. Raises TraceError where it lies outside the model's folder or does not exist."""
    try:
        path = (folder / location).resolve()
        if not location or not path.is_relative_to(folder.resolve()):
            raise TraceError(
                f"the data of tensor {name!r} is to be read from outside the model's folder",
                expected=f"a file in {folder}",
                found=shown(location),
            )
        if not path.is_file():
            raise TraceError(f"the data of tensor {name!r} is missing", expected=f"the file {shown(location)}")
        return path
    except (OSError, RuntimeError, ValueError) as error:  # from the disk, links in a circle, a null character
        raise TraceError(
            f"the data of tensor {name!r} has a location that is no file", found=shown(location)
        ) from error


def _number(text: str, name: str) -> int:
    if not text.isascii() or not text.isdigit() or len(text) > 18:
        raise TraceError(f"the external data of tensor {name!r} has a bad offset or length", found=shown(text))
    return int(text)


def shown(text: str) -> str:
    """A text of a file in an error: quoted, and cut where it is long."""
    return repr(text if len(text) <= _SHOWN else f"{text[:_SHOWN]}...")
