"""Reading an ONNX file: its bytes, its opsets and what it takes and gives, checked before anything is built."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import onnx
from onnx import FunctionProto, GraphProto, ModelProto, ValueInfoProto

from tersor.ir.errors import ArchiveError, TraceError
from tersor.ir.signature import Dim, Range, Signature, TensorSpec
from tersor.ir.structure import Structure

from .budget import MOST_AXES, MOST_DYNAMIC
from .dtypes import dtype_of
from .registry import standard
from .tensors import possible
from .wire import holds_at_most

OLDEST_OPSET = 7
_PROTOBUF_LIMIT = (1 << 31) - 1
_FREE_MESSAGES, _BYTES_PER_MESSAGE = 1 << 20, 16
"""A message takes a hundred bytes of memory, and two of a file: as many may be, and more in proportion to the file."""


@dataclass(frozen=True)
class ModelFile:
    """A model as it stands in a file, with the opset of each domain and the model's own functions.

    equal: names of dimensions that are taken for others.
    """

    path: Path
    size: int
    model: ModelProto
    opsets: Mapping[str, int]
    functions: Mapping[tuple[str, str], FunctionProto]
    equal: Mapping[str, str] = field(default_factory=dict)

    @property
    def graph(self) -> GraphProto:
        return self.model.graph

    @property
    def inputs(self) -> list[ValueInfoProto]:
        """What a caller gives: old files list initializers among the inputs."""
        stored = {tensor.name for tensor in self.graph.initializer}
        return [value for value in self.graph.input if value.name not in stored]


def read(path: Path) -> ModelFile:
    """Read a file without its external data.

    Raises ArchiveError where it is no ONNX model or damaged, TraceError where its opset is not known.
    """
    size = _size(path)
    model = _parse(path, size)
    if not model.HasField("graph") or not (model.graph.node or model.graph.output):
        raise ArchiveError(f"{path} holds no model", expected="an ONNX model with a graph", found=f"{size} bytes")
    _refuse_undecoded(model, path)
    opsets = {standard(entry.domain): entry.version for entry in model.opset_import}
    newest = onnx.defs.onnx_opset_version()
    if "" in opsets and not OLDEST_OPSET <= opsets[""] <= newest:
        raise TraceError(
            f"{path} is of an opset that is not read",
            expected=f"opset {OLDEST_OPSET} to {newest}",
            found=opsets[""],
            hint="convert it with onnx.version_converter, or install a newer onnx",
        )
    functions = {(standard(function.domain), function.name): function for function in model.functions}
    return ModelFile(path, size, model, opsets, functions)


def _size(path: Path) -> int:
    try:
        if not path.is_file():
            raise ArchiveError(f"{path} does not exist" if not path.exists() else f"{path} is not a file")
        return path.stat().st_size
    except OSError as error:
        raise ArchiveError(f"{path} cannot be read: {error}") from error


def _parse(path: Path, size: int) -> ModelProto:
    if size > _PROTOBUF_LIMIT:
        raise ArchiveError(
            f"{path} is larger than an ONNX file can be",
            expected="at most 2 GB",
            found=f"{size} bytes",
            hint="save it with its weights beside it: onnx.save(..., save_as_external_data=True)",
        )
    try:
        data = path.read_bytes()
    except OSError as error:
        raise ArchiveError(f"{path} cannot be read: {error}") from error
    most = _FREE_MESSAGES + size // _BYTES_PER_MESSAGE
    if size > 2 * _FREE_MESSAGES and not holds_at_most(data, most):
        raise ArchiveError(f"{path} holds too many messages for its size", expected=f"at most {most}")
    try:
        model = ModelProto()
        model.ParseFromString(data)
        return model
    except Exception as error:  # protobuf raises types of its own, which differ between its versions
        raise ArchiveError(
            f"{path} is not an ONNX model, or it is damaged", expected="a serialized ModelProto", found=str(error)
        ) from error


def _refuse_undecoded(message: Any, path: Path) -> None:
    """Raises ArchiveError for text that is not UTF-8, which protobuf lets through, as bytes or until it is read."""
    try:
        for field, value in message.ListFields():
            values = value if field.is_repeated else (value,)
            if field.type == field.TYPE_MESSAGE and field.message_type.name != "TensorProto":
                for item in values:
                    _refuse_undecoded(item, path)
            elif field.type == field.TYPE_STRING and not all(isinstance(item, str) for item in values):
                raise ArchiveError(f"{path} is damaged: {field.full_name} is no text", expected="UTF-8")
    except UnicodeDecodeError as error:
        raise ArchiveError(f"{path} is damaged: text that is no text", expected="UTF-8") from error


def signature_of(file: ModelFile) -> Signature:
    """Inputs under their names, dynamic dimensions under theirs; one output is a tensor, several a dict by name.

    Raises TraceError naming an input that is no tensor, has no shape, or has a type that torch lacks.
    """
    dims: dict[str, Range] = {}
    specs = tuple(_spec(value, dims, file) for value in file.inputs)
    names = [value.name for value in file.graph.output]
    repeated = _repeated([spec.name for spec in specs]) or _repeated(names)
    if repeated or not names:
        raise TraceError(
            f"{file.path}: {f'two inputs or outputs are named {repeated!r}' if repeated else 'no outputs'}"
        )
    leaf = Structure("leaf")
    outputs = Structure("dict", (leaf,) * len(names), tuple(names))
    if len(names) == 1:
        outputs = Structure("leaf", keys=(names[0],))
    args = Structure("tuple", (leaf,) * len(specs))
    return Signature(specs, args, Structure("dict"), outputs, tuple(spec.name for spec in specs), dims)


def _repeated(names: Sequence[str]) -> str | None:
    return next((name for name, count in Counter(names).items() if count > 1), None)


def _spec(value: ValueInfoProto, dims: dict[str, Range], file: ModelFile) -> TensorSpec:
    path = file.path
    kind = value.type.WhichOneof("value")
    tensor = value.type.tensor_type
    if kind != "tensor_type" or not tensor.HasField("shape"):
        raise TraceError(
            f"{path}: input {value.name!r} is {'a tensor without a rank' if kind == 'tensor_type' else kind}",
            expected="a tensor of known rank",
            hint="state the shape of the input in the file; sizes may be names",
        )
    shape: list[Dim] = []
    for place, dim in enumerate(tensor.shape.dim):
        if dim.HasField("dim_value") and dim.dim_value >= 0:
            shape.append(dim.dim_value)
        else:
            label = identifier(dim.dim_param or f"{value.name}_dim{place}")
            label = file.equal.get(label, label)
            dims[label] = Range()
            shape.append(label)
    try:
        dtype = dtype_of(tensor.elem_type)
    except TraceError as error:
        raise TraceError(f"{path}: input {value.name!r}: {error.what}", expected=error.expected) from None
    static = [size for size in shape if isinstance(size, int)]
    if not possible(static, dtype) or len(shape) > MOST_AXES or len(shape) - len(static) > MOST_DYNAMIC:
        raise TraceError(f"{path}: input {value.name!r} has impossible sizes", found=shape[:MOST_AXES])
    return TensorSpec(value.name, dtype, tuple(shape))


def identifier(name: str) -> str:
    """A Python identifier for an ONNX name: `/layer1/conv/Conv_output_0` becomes `layer1_conv_Conv_output_0`."""
    text = re.sub(r"\W", "_", name, flags=re.ASCII).lstrip("_") or "value"
    return f"_{text}" if text[0].isdigit() else f"{text}_" if text == "self" else text
