"""A lowered model: C sources, built and run here to see what they give."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from tersor.ir.signature import Signature

from ..base import Artifact, LoweringReport
from ..batching import is_batched
from ..clock import Clock
from .machine import Machine
from .toolchain import is_native


class NeonArtifact(Artifact):
    """C sources in a folder. `run` builds the example program and runs it: natively on ARM, else by qemu-aarch64."""

    def __init__(
        self, path: Path, signature: Signature, report: LoweringReport, machine: Machine | None = None
    ) -> None:
        super().__init__(path, signature, report)
        self.machine = machine or Machine()

    def on(self, machine: Machine) -> NeonArtifact:
        """The same artifact, built and run another way."""
        return NeonArtifact(self.path, self.signature, self.report, machine)

    @property
    def clock(self) -> Clock:
        """Emulated, or the portable C, unless this machine is an ARM."""
        return Clock.MEASURED if is_native() and not self.machine.portable else Clock.EMULATED

    def build(self) -> Path:
        """The folder with the library and its programs. Raises MissingDependencyError, LoweringError."""
        return self.machine.build(self.path)

    def run_flat(self, inputs: Sequence[Tensor]) -> Sequence[Tensor]:
        """Run sample by sample. Raises MissingDependencyError, LoweringError."""
        samples = inputs[0].shape[0] if self._dynamic else 1
        frames = b"".join(map(bytes, self.frames(inputs)))
        return self.outputs(self.machine.execute(self.build() / "main", frames), samples)

    @property
    def _dynamic(self) -> bool:
        return is_batched(self.signature)

    def frames(self, inputs: Sequence[Tensor]) -> list[bytes]:
        """The bytes of each sample: its inputs, one after another."""
        if not self._dynamic:
            return [b"".join(tensor.detach().cpu().contiguous().numpy().tobytes() for tensor in inputs)]
        count = inputs[0].shape[0]
        return [
            b"".join(tensor[i].detach().cpu().contiguous().numpy().tobytes() for tensor in inputs) for i in range(count)
        ]

    def outputs(self, data: bytes, samples: int) -> list[Tensor]:
        """The outputs of all samples from the bytes that a program wrote."""
        types = self.output_types()
        values = np.frombuffer(
            bytearray(data), np.dtype([(f"{i}", dtype, shape) for i, (shape, dtype) in enumerate(types)])
        )
        found = [torch.from_numpy(values[f"{i}"].copy()) for i in range(len(types))]
        return [
            tensor.reshape(samples, *shape[1:]) if self._dynamic else tensor.reshape(shape)
            for tensor, (shape, _) in zip(found, types, strict=True)
        ]

    def output_types(self) -> list[tuple[tuple[int, ...], str]]:
        """The shape of each output, for one sample, and the name of its type."""
        notes = [note.split(" ")[1:] for note in self.report.notes if note.startswith("output ")]
        return [(tuple(map(int, filter(None, note[0].split("x")))), [*note, "float32"][1]) for note in notes]
