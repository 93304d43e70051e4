"""The hls target: C++ for high-level synthesis, simulated with g++."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

from torch import fx

from tersor.ir.errors import LoweringError
from tersor.ir.program import Program
from tersor.ir.sparsity import Block
from tersor.passes.base import Pass
from tersor.passes.integer.lower_to_integer import LowerToInteger
from tersor.passes.preferences import FastPattern, Multiples, Preferences
from tersor.passes.quantization.placement import Coverage
from tersor.passes.rewriting.bind_dimensions import BindDimensions
from tersor.passes.streamlining.fold_pads import FoldPads
from tersor.passes.streamlining.fuse_lookups import FuseLookups
from tersor.passes.streamlining.tighten_grids import TightenGrids

from ..base import Backend, Unsupported
from ..layer_costs import LayerCosts
from ..manifest import read_manifest
from .parts import find_part

if TYPE_CHECKING:
    from .artifact import HlsArtifact

_RESERVED = {"main", "layers", "kernels", "simulation", "simulate", "testbench", "golden", "void", "int", "hls", "beat"}


@dataclass(frozen=True)
class Hls(Backend):
    """A dataflow of integer streams: one process a layer, in C++ for Vitis HLS, with the bits of the integer stage.

    The program is lowered to the integer stage and streamlined; what that leaves float is refused. Dynamic dimensions
    are bound to numbers, a batch to 1: the artifact runs larger ones frame by frame.

    part: a name from `parts.PARTS`, or its part number. clock: MHz; None takes what is usual for the part.
    cycles: from frame to frame, at most; None takes the fewest that the part has room for.
    folding: an edited `folding.json` of an earlier lowering, instead of a search; the part's size is then not checked.
    top: the name of the top function. sizes: of dynamic dimensions; others get their least size.
    """

    name: ClassVar[str] = "hls"
    summary: ClassVar[str] = "FPGAs: a dataflow of integer streams as HLS C++, and QONNX"

    part: str = "zu3eg"
    clock: float | None = None
    cycles: int | None = None
    folding: str | Path | None = None
    top: str = "model"
    sizes: Mapping[str, int] = field(default_factory=dict)

    def __post_init__(self) -> None:
        find_part(self.part)
        if not re.fullmatch(r"[a-z][a-z0-9_]*", self.top) or self.top in _RESERVED:
            raise LoweringError("top is the name of a C++ function", expected="[a-z][a-z0-9_]*", found=self.top)
        for what in ("clock", "cycles"):
            value = getattr(self, what)
            if value is not None and not value > 0:
                raise LoweringError(f"{what} is a positive number", found=value)
        if self.cycles is not None and self.folding is not None:
            raise LoweringError("a folding says how many cycles a frame takes", hint="give cycles, or folding")

    @classmethod
    def missing(cls) -> str | None:
        from .toolchain import has_compiler

        return None if has_compiler() else "g++ to simulate: apt-get install g++"

    @property
    def preferences(self) -> Preferences:
        """Everything on integers of any width, short multipliers, and channels that PE and SIMD divide.

        Zeros are skipped in runs of SIMD in a row, which is as quick as the row of each PE with the fewest.
        """
        return Preferences(
            coverage=Coverage.EVERYTHING,
            recipe="int8_fpga",
            short_multipliers=True,
            multiples=Multiples(4, 4),
            patterns=(FastPattern(Block(1, 4, 0.6)), FastPattern(Block(4, 4, 0.8))),
            weight_bits=(8, 6, 4),
            activation_bits=(8, 6, 4),
            floats=False,
        )

    def prepared_costs(self, program: Program) -> LayerCosts:
        """Cycles of each process of the design that the part has room for, by formula; in all, from frame to frame."""
        from .layer_costs import cycles

        return cycles(program, self)

    def passes(self) -> tuple[Pass, ...]:
        return (LowerToInteger(), BindDimensions(self.sizes), FoldPads(), FuseLookups(), TightenGrids())

    def supports(self, program: Program, node: fx.Node) -> Unsupported | None:
        return next((found for found in self.unsupported(program) if found.node == node.name), None)

    def unsupported(self, program: Program) -> list[Unsupported]:
        """Every node that has no place in a dataflow graph, found in one walk."""
        from .support import unsupported_nodes

        return unsupported_nodes(program)

    def emit(self, program: Program, out: Path) -> HlsArtifact:
        from .emit import emit

        return emit(program, out, self)

    @classmethod
    def open(cls, folder: Path) -> HlsArtifact:
        from .artifact import HlsArtifact

        return HlsArtifact(folder, *read_manifest(folder, cls.name))
