"""An ONNX file with what tersor knows of it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

from torch import Tensor

from tersor.ir.signature import Signature

from ..base import Artifact, LoweringReport
from .model_file import OnnxFile
from .session import open_session


class OnnxRuntimeArtifact(Artifact):
    """`model.onnx` in a folder. The session is opened at the first run.

    threads: of that session; None leaves the number to ONNX Runtime.
    """

    def __init__(self, path: Path, signature: Signature, report: LoweringReport, threads: int | None = None) -> None:
        super().__init__(path, signature, report)
        self.threads = threads

    @property
    def model(self) -> Path:
        """The ONNX file."""
        return self.path / "model.onnx"

    @cached_property
    def _file(self) -> OnnxFile:
        return OnnxFile(self.model, self.threads)

    def set_threads(self, threads: int) -> None:
        """Use that many threads from now on."""
        self.threads = threads
        self.__dict__.pop("_file", None)

    def run_flat(self, inputs: Sequence[Tensor]) -> Sequence[Tensor]:
        """Run on flat inputs that were checked already. Raises MissingDependencyError, ArchiveError."""
        return self._file.run(inputs)

    def layers(self, inputs: Sequence[Tensor]) -> Iterator[tuple[str, Tensor]]:
        """Every float value inside under its node's name, computed without ONNX Runtime's fusions."""
        return self._file.layers(inputs)

    def session(self, threads: int | None = None) -> Any:
        """A new onnxruntime.InferenceSession, for measuring and for use without tersor."""
        return open_session(self.model, threads)
