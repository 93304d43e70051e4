"""The onnxruntime target: runs everywhere, and is the default."""

from __future__ import annotations

from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

from torch import fx

from tersor.ir.errors import LoweringError
from tersor.ir.program import Program
from tersor.passes.preferences import Multiples, Preferences

from ..base import Artifact, Backend, Unsupported
from ..layer_costs import LayerCosts
from ..manifest import read_manifest
from ..processor import has_amx
from .support import unsupported_nodes

if TYPE_CHECKING:
    from ..onnx.builder import OnnxOptions

OPSETS = (21, 23)
"""The least and greatest opset that can be written: int4 came with 21, attention as one operator with 23."""


@dataclass(frozen=True)
class OnnxRuntime(Backend):
    """ONNX with QuantizeLinear and DequantizeLinear, in the form that ONNX Runtime fuses into integer kernels.

    Weights are stored as int8 or int4, biases as int32, activations are uint8. The audit tells which operators ONNX
    Runtime runs in integer, by letting it optimize the model.

    external_data: keep tensors in a file beside the model, as is done anyway from 2 GB on.
    opset: the version of ONNX's operators; None: 23, where the installed ONNX Runtime has all of it, else 21.
    audit: ask ONNX Runtime which nodes run in integer; without it the report has no rows.
    int8_activations: let ONNX Runtime quantize the activations that meet weights in blocks, block by block, and compute
        in integer: faster, and less exact.
    threads: of the artifact's session; None leaves it to ONNX Runtime.
    amx: store weights of large convolutions so that ONNX Runtime multiplies them in AMX's tiles; None: where this
        machine has those. The results are the same; a CPU without AMX runs such a file slower, and one without VNNI
        may saturate.

    Raises LoweringError on an opset that cannot be written, and from `emit` on a program that is not calibrated, that
    trains, or that calls an operator without a rule.
    """

    name: ClassVar[str] = "onnxruntime"
    summary: ClassVar[str] = "ONNX Runtime on CPUs: one QDQ ONNX file"

    external_data: bool = False
    opset: int | None = None
    audit: bool = True
    int8_activations: bool = False
    threads: int | None = None
    amx: bool | None = None

    def __post_init__(self) -> None:
        if self.opset is not None and not OPSETS[0] <= self.opset <= OPSETS[1]:
            raise LoweringError("cannot write this opset", expected=f"{OPSETS[0]} to {OPSETS[1]}", found=self.opset)

    @classmethod
    def missing(cls) -> str | None:
        return None if find_spec("onnxruntime") else "onnxruntime"

    @property
    def preferences(self) -> Preferences:
        """Kernels of 16 lanes, weights in blocks, safe pairs for CPUs without VNNI; it has no kernels for zeros."""
        return Preferences(pair_safe=True, multiples=Multiples(16, 4), block_bits=(8, 4))

    def prepared_costs(self, program: Program) -> LayerCosts:
        """Milliseconds, measured by ONNX Runtime's profiler on this machine. Raises MissingDependencyError."""
        from .layer_costs import measure

        return measure(program, self)

    @property
    def onnx_options(self) -> OnnxOptions:
        """The form of ONNX that ONNX Runtime fuses."""
        from ..onnx.builder import OnnxOptions

        amx = has_amx() if self.amx is None else self.amx
        return OnnxOptions(
            self._opset,
            contrib=True,
            int8_activations=self.int8_activations,
            whole_attention=True,
            fast_convolutions=True,
            shift_weights=amx,
        )

    @property
    def _opset(self) -> int:
        from .session import newest_opset

        if self.opset is not None:
            return self.opset
        return newest_opset(OPSETS) if self.missing() is None else OPSETS[0]

    def supports(self, program: Program, node: fx.Node) -> Unsupported | None:
        return next((found for found in self.unsupported(program) if found.node == node.name), None)

    def unsupported(self, program: Program) -> list[Unsupported]:
        """Every node that cannot be written as ONNX, found in one walk."""
        return unsupported_nodes(program, self.onnx_options)

    def emit(self, program: Program, out: Path) -> Artifact:
        from .emit import emit

        return emit(program, out, self)

    @classmethod
    def open(cls, folder: Path) -> Artifact:
        from .artifact import OnnxRuntimeArtifact

        return OnnxRuntimeArtifact(folder, *read_manifest(folder, cls.name))
