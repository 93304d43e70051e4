"""The neon target: a self-contained C library of integer kernels for ARM."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

from torch import fx

from tersor.ir.errors import LoweringError
from tersor.ir.program import Program
from tersor.passes.base import Pass
from tersor.passes.integer.lower_to_integer import LowerToInteger
from tersor.passes.preferences import Multiples, Preferences
from tersor.passes.quantization.placement import Coverage
from tersor.passes.rewriting.bind_dimensions import BindDimensions

from ..base import Artifact, Backend, Unsupported
from ..layer_costs import LayerCosts
from ..manifest import read_manifest

if TYPE_CHECKING:
    from .artifact import NeonArtifact

BLOCKS = {"neon": 4, "dotprod": 4, "i8mm": 8}
"""Instruction sets, the plainest first, and how many channels their kernels take together."""

_RESERVED = frozenset({
    "main", "bench", "weights", "kernels", "tersor_kernels", "tersor_layers", "tersor_model", "arm_neon", "assert",
    "complex", "ctype", "errno", "fenv", "float", "inttypes", "iso646", "limits", "locale", "math", "setjmp",
    "signal", "stdalign", "stdarg", "stdatomic", "stdbool", "stddef", "stdint", "stdio", "stdlib", "stdnoreturn",
    "string", "tgmath", "threads", "time", "uchar", "wchar", "wctype",
})  # fmt: skip
"""Names whose header or source would stand before one of the library's own, or of C's."""


@dataclass(frozen=True)
class Neon(Backend):
    """C11 for ARM, without dependencies: no allocation, a static memory plan, weights in one aligned file.

    The program is lowered to the integer stage, whose bits the library gives on every processor. What the integer stage
    leaves float is refused. Dynamic dimensions are bound to numbers, a batch to 1: the artifact runs larger ones sample
    by sample.

    isas: the instruction sets to compile for, chosen from when the program runs.
    library: the prefix of files and functions, a C identifier.
    sizes: of dynamic dimensions; those that are not named get their least size.
    """

    name: ClassVar[str] = "neon"
    summary: ClassVar[str] = "ARM CPUs: a C library of int8 kernels, dense and sparse"

    isas: tuple[str, ...] = tuple(BLOCKS)
    library: str = "model"
    sizes: Mapping[str, int] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if not self.isas or any(isa not in BLOCKS for isa in self.isas):
            raise LoweringError("unknown instruction set", expected=f"some of {', '.join(BLOCKS)}", found=self.isas)
        if not re.fullmatch(r"[a-z][a-z0-9_]*", self.library):
            raise LoweringError(
                "library is a prefix for files and functions", expected="[a-z][a-z0-9_]*", found=self.library
            )
        if self.library in _RESERVED:
            raise LoweringError(
                f"library={self.library!r} would hide another file of that name", hint=f"{self.library}_model"
            )

    @classmethod
    def missing(cls) -> str | None:
        from .toolchain import missing_tools

        return missing_tools()

    @property
    def preferences(self) -> Preferences:
        """Everything on integers, channels in the blocks of the last instruction set, and the zeros that it skips."""
        from .choice import fast_patterns

        block = BLOCKS[self.isas[-1]]
        return Preferences(
            coverage=Coverage.EVERYTHING,
            recipe="int8_integer",
            multiples=Multiples(block, block),
            patterns=fast_patterns(self.isas[-1]),
            floats=False,
        )

    def prepared_costs(self, program: Program) -> LayerCosts:
        """Instructions on the last of the instruction sets, by the counts of its kernels."""
        from .layer_costs import count_instructions

        return count_instructions(program, self)

    def passes(self) -> tuple[Pass, ...]:
        return (LowerToInteger(), BindDimensions(self.sizes))

    def supports(self, program: Program, node: fx.Node) -> Unsupported | None:
        return next((found for found in self.unsupported(program) if found.node == node.name), None)

    def unsupported(self, program: Program) -> list[Unsupported]:
        """Every node that the library cannot compute, found in one walk."""
        from .support import unsupported_nodes

        return unsupported_nodes(program)

    def emit(self, program: Program, out: Path) -> Artifact:
        from .emit import emit

        return emit(program, out, self)

    @classmethod
    def open(cls, folder: Path) -> NeonArtifact:
        from .artifact import NeonArtifact

        return NeonArtifact(folder, *read_manifest(folder, cls.name))
