"""Any ONNX file, run by ONNX Runtime: for comparing and measuring, whoever wrote it."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from tersor.ir.errors import ArchiveError, SignatureError
from tersor.ir.signature import TensorSpec

from .session import open_session

_DTYPES = {
    "tensor(float)": torch.float32,
    "tensor(double)": torch.float64,
    "tensor(float16)": torch.float16,
    "tensor(int64)": torch.int64,
    "tensor(int32)": torch.int32,
    "tensor(int16)": torch.int16,
    "tensor(int8)": torch.int8,
    "tensor(uint8)": torch.uint8,
    "tensor(bool)": torch.bool,
}


class OnnxFile:
    """An ONNX file as something that can be compared and timed. Raises ArchiveError where it cannot be loaded."""

    def __init__(self, path: Path, threads: int | None = 1) -> None:
        self.path, self.name = path, str(path)
        self.threads = threads
        self._session = open_session(path, self.threads)
        self.inputs = tuple(self._spec(given) for given in self._session.get_inputs())

    def set_threads(self, threads: int) -> None:
        """Use that many threads from now on."""
        if threads != self.threads:
            self.threads = threads
            self._session = open_session(self.path, threads)

    def run(self, inputs: Sequence[Tensor]) -> Sequence[Tensor]:
        """Run on flat inputs."""
        return self._run(self._session, inputs)

    def layers(self, inputs: Sequence[Tensor]) -> Iterator[tuple[str, Tensor]]:
        """Every float value inside, from a copy of the file that gives them all and is not optimized."""
        import onnx

        model = onnx.load(self.path)
        inferred = onnx.shape_inference.infer_shapes(model).graph.value_info
        known = {info.name: info for info in inferred if info.type.tensor_type.elem_type == onnx.TensorProto.FLOAT}
        given = {output.name for output in model.graph.output}
        model.graph.output.extend(info for name, info in known.items() if name not in given)
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "model.onnx"
            onnx.save(model, path, save_as_external_data=True, location="model.data")
            session = open_session(path, self.threads, optimize=False)
            names = [output.name for output in session.get_outputs()]
            yield from zip(names, self._run(session, inputs), strict=True)

    def _run(self, session: Any, inputs: Sequence[Tensor]) -> list[Tensor]:
        names = [spec.name for spec in self.inputs]
        feed = {name: tensor.detach().cpu().numpy() for name, tensor in zip(names, inputs, strict=True)}
        try:
            return [torch.from_numpy(value) for value in session.run(None, feed)]
        except Exception as error:  # onnxruntime raises types of its own, made at run time
            raise SignatureError(f"{self.name} does not run on these inputs: {error}") from error

    def _spec(self, given: Any) -> TensorSpec:
        if given.type not in _DTYPES:
            raise ArchiveError(f"{self.name}: input {given.name!r} is {given.type}", expected="a numeric tensor")
        shape = tuple(dim if isinstance(dim, int) else str(dim or "dynamic") for dim in given.shape)
        return TensorSpec(given.name, _DTYPES[given.type], shape)
