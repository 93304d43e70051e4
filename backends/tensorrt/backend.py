"""The tensorrt target: INT8 engines for NVIDIA GPUs, built where there is none."""

from __future__ import annotations

import enum
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

from torch import fx

from tersor.ir.errors import LoweringError
from tersor.ir.program import Program
from tersor.ir.quantization import INT8_SYMMETRIC
from tersor.ir.sparsity import NM
from tersor.passes.base import Pass
from tersor.passes.preferences import FastPattern, Multiples, Preferences
from tersor.passes.quantization.free_fused_values import FreeFusedValues
from tersor.passes.quantization.placement import Coverage
from tersor.passes.quantization.share_residual_grids import ShareResidualGrids
from tersor.passes.quantization.symmetrize_grids import SymmetrizeGrids
from tersor.passes.quantization.unify_joined_grids import UnifyJoinedGrids
from tersor.passes.rewriting.split_linears import SplitLinears

from ..base import Artifact, Backend, Unsupported
from ..layer_costs import LayerCosts
from .build_engine import INSTALL, PACKAGES

if TYPE_CHECKING:
    from ..onnx.builder import OnnxOptions
    from .artifact import TensorRTArtifact

PORTABLE = ("8.6", "8.9", "12.0")
"""Ampere, Ada and Blackwell for consumers and workstations: one engine serves them all."""


class Builder(enum.Enum):
    """Who builds the engine.

    AUTO: full TensorRT where it is installed and there is a GPU, else TensorRT for RTX, else nobody.
    NONE: nobody; the ONNX file and a build script are written.
    """

    AUTO = "auto"
    TENSORRT = "tensorrt"
    RTX = "tensorrt_rtx"
    NONE = "none"


class Attention(enum.Enum):
    """How attention that is not quantized computes.

    FUSED: in float16, with float32 sums inside, which is the form that TensorRT has one kernel for. FLOAT32: as it is
    written, in several kernels. Attention whose products are quantized runs them in int8 and its softmax in float.
    """

    FUSED = "fused"
    FLOAT32 = "float32"


class Precision(enum.Enum):
    """What 8-bit grids become.

    INT8: the integers that the program computes with. FLOAT8: E4M3 floats of the same reach, which GPUs from 8.9 on
    multiply; the program itself does not compute those numbers, ONNX Runtime does on the emitted file.
    """

    INT8 = "int8"
    FLOAT8 = "float8"


@dataclass(frozen=True)
class Sizes:
    """The sizes that an engine takes for one dynamic dimension, and the one that it is tuned for."""

    least: int
    best: int
    most: int

    def __post_init__(self) -> None:
        if not 0 < self.least <= self.best <= self.most:
            found = f"{self.least}, {self.best}, {self.most}"
            raise LoweringError("impossible sizes", expected="0 < least <= best <= most", found=found)


@dataclass(frozen=True)
class TensorRT(Backend):
    """An INT8 engine, with the QDQ ONNX file that it is built from and an audit read back from the engine.

    Programs are quantized explicitly: what the program has on grids runs in int8, all else in float. Asymmetric
    activations are re-expressed as symmetric ones. Programs that are not quantized give float engines.

    compute_capabilities: the GPUs that TensorRT for RTX builds for, as `8.9`; full TensorRT builds for the GPU that it
        runs on.
    profiles: the sizes of dynamic dimensions, an optimization profile each. None makes one: from the least size that
        the program takes, tuned for the size of its example, up to the most it takes, or 4 times the example's where
        there is no bound.
    builder, attention, precision: see these. FLOAT8 takes capabilities of 8.9 and newer.
    sparse: let kernels for 2:4 sparse weights be chosen. None: where the program's sparsity table has such weights.
    timing_cache: a file in the artifact's folder, or elsewhere, where full TensorRT keeps measurements between builds.
    workspace: bytes that kernels may use for scratch; None leaves it to the builder.
    external_data: keep the ONNX file's tensors in a file beside it, as is done anyway from 2 GB on.

    Raises LoweringError on options that make no sense.
    """

    name: ClassVar[str] = "tensorrt"
    summary: ClassVar[str] = "NVIDIA GPUs: INT8 engines, built without a GPU"

    compute_capabilities: tuple[str, ...] = PORTABLE
    profiles: tuple[Mapping[str, Sizes], ...] | None = None
    builder: Builder = Builder.AUTO
    attention: Attention = Attention.FUSED
    precision: Precision = Precision.INT8
    sparse: bool | None = None
    timing_cache: str | None = field(default="timing.cache")
    workspace: int | None = None
    external_data: bool = False

    def __post_init__(self) -> None:
        wrong = [name for name in self.compute_capabilities if not re.fullmatch(r"\d{1,2}\.\d", name)]
        if wrong or not self.compute_capabilities:
            raise LoweringError("not compute capabilities", expected="some, as '8.6'", found=self.compute_capabilities)
        if self.workspace is not None and self.workspace < 0:
            raise LoweringError("workspace is a number of bytes", found=self.workspace)
        if self.profiles is not None and not self.profiles:
            raise LoweringError("no optimization profile", expected="one or more, or None", found=self.profiles)

    @classmethod
    def missing(cls) -> str | None:
        """The package to install before engines can be built here, and what they need to run."""
        if not any(find_spec(package) for package in PACKAGES):
            return INSTALL.removeprefix("pip install ")
        return None

    @property
    def preferences(self) -> Preferences:
        """Zero point 0, channels in whole tiles of tensor cores, 2:4 sparse weights, 4-bit weights in blocks.

        Activations that no kernel computes with a product move a quarter of the bytes where they are on grids as well.
        """
        return Preferences(
            scheme=INT8_SYMMETRIC,
            recipe="int8_symmetric",
            wider=Coverage.EVERYTHING,
            multiples=Multiples(32, 32),
            patterns=(FastPattern(NM(2, 4)),),
            block_bits=(4,),
        )

    def prepared_costs(self, program: Program) -> LayerCosts:
        """Microseconds by a roofline of a GPU's data sheet: int8 against float, 2:4 against dense, memory traffic."""
        from .layer_costs import roofline

        return roofline(program)

    def onnx_options(self, program: Program) -> OnnxOptions:
        """The form of ONNX that TensorRT's parser and its optimizer take.

        Opset 20 where it can say everything: what ONNX Runtime makes of int8 activations at opset 21 it then refuses.
        """
        from ..onnx.builder import OnnxOptions
        from .support import needs_opset_21

        return OnnxOptions(
            opset=21 if needs_opset_21(program) else 20,
            unsigned=False,
            widen=False,
            widen_stored=True,
            fold_clamps=False,
            float_biases=True,
            move_stored=False,
            float8=self.precision is Precision.FLOAT8,
            half_attention=self.attention is Attention.FUSED,
        )

    def passes(self) -> tuple[Pass, ...]:
        """Placement: symmetric grids, one grid for what is joined, both branches of sums, none inside a kernel."""
        return (SymmetrizeGrids(), UnifyJoinedGrids(), ShareResidualGrids(), FreeFusedValues(), SplitLinears())

    def supports(self, program: Program, node: fx.Node) -> Unsupported | None:
        return next((found for found in self.unsupported(program) if found.node == node.name), None)

    def unsupported(self, program: Program) -> list[Unsupported]:
        """Every node that TensorRT does not take, found in one walk."""
        from .support import unsupported_nodes

        return unsupported_nodes(program, self.onnx_options(program))

    def emit(self, program: Program, out: Path) -> Artifact:
        from .emit import emit

        return emit(program, out, self)

    @classmethod
    def open(cls, folder: Path) -> TensorRTArtifact:
        from .artifact import open_artifact

        return open_artifact(folder)
