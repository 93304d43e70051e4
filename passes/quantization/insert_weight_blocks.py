"""Put weights on grids of blocks, and leave activations as they are."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import fx

from tersor.ir.block_operators import FAKE_QUANTIZE_BLOCKS
from tersor.ir.errors import CalibrationError, PassError
from tersor.ir.program import Program
from tersor.ir.stage import Stage

from ..base import Pass, PassResult, Promise, on_the_cpu
from ..progress import track
from .block_weights import INT4_BLOCKS, BlockScheme, BlockWeight, block_grid, block_weights
from .finite import refuse_unfinite_weights
from .placement import matches


@dataclass(frozen=True)
class InsertWeightBlocks(Pass):
    """Weight-only quantization: each block of a weight on a grid of its own, rounded to the nearest.

        %linear = aten.linear(%x, @w, @b)   ->   %w_quantized = tersor.fake_quantize_blocks(@w, scale, zero, -1, 32,
                                                 -8, 7)
                                                 %linear = aten.linear(%x, %w_quantized, @b)

    Weights of linears are taken, and the stacked weights of experts that an index picks from. The scale of a block is
    searched for the least squared error of its values. Activations stay float, so no data is needed.

    scheme: bits, block, symmetry. skip: as for `InsertFakeQuant`; a weight is left where one of its readers matches.
    only: patterns of which one of a weight's readers has to match one; empty means all.

    Raises PassError where nothing is left to quantize, CalibrationError where a weight is not finite.
    """

    takes: ClassVar[frozenset[Stage]] = frozenset({Stage.FLOAT, Stage.FAKE_QUANT})
    gives: ClassVar[Stage | None] = Stage.FAKE_QUANT
    promise: ClassVar[Promise] = Promise.APPROXIMATE

    scheme: BlockScheme = INT4_BLOCKS
    skip: tuple[str, ...] = ()
    only: tuple[str, ...] = ()

    @on_the_cpu
    def run(self, program: Program) -> PassResult:
        """Insert the grids."""
        refuse_unfinite_weights(program)
        self._refuse_unmatched(program)
        weights = [weight for weight in block_weights(program) if self._wanted(weight)]
        if not weights:
            raise PassError("there is no weight to quantize", expected="a linear with a constant weight")
        values = 0
        for weight in track(weights, "quantize weights"):
            self._place(program, weight)
            values += program.tensor(str(weight.read.target)).numel()
        return PassResult(program, True, (f"{len(weights)} weights of {values:,} values: {self.scheme}",))

    def _wanted(self, weight: BlockWeight) -> bool:
        if any(matches(user, pattern) for user in weight.users for pattern in self.skip):
            return False
        return not self.only or any(matches(user, pattern) for user in weight.users for pattern in self.only)

    def _refuse_unmatched(self, program: Program) -> None:
        for pattern in (*self.skip, *self.only):
            if not any(matches(node, pattern) for node in program.graph.nodes if node.op == "call_function"):
                raise PassError(f"{pattern!r} matches no node and no module", hint="see `print(program)`")

    def _place(self, program: Program, weight: BlockWeight) -> fx.Node:
        name = str(weight.read.target)
        try:
            scale, zero = block_grid(program.tensor(name), weight.axis, self.scheme)
        except CalibrationError as error:
            raise CalibrationError(error.what, node=weight.read, found=error.found) from None
        stem = f"quantization.{name.replace('.', '_')}"
        names = program.add_tensor(f"{stem}.scale", scale), program.add_tensor(f"{stem}.zero_point", zero)
        order = {node: place for place, node in enumerate(program.graph.nodes)}
        first = min(weight.users, key=order.__getitem__)
        with program.graph.inserting_before(first):
            read = program.attribute(name)
            parameters = [program.attribute(tensor) for tensor in names]
            arguments = (read, *parameters, weight.axis, self.scheme.block, self.scheme.qmin, self.scheme.qmax)
            label = f"{name.replace('.', '_')}_quantized"
            quantized = program.call(FAKE_QUANTIZE_BLOCKS, arguments, like=weight.read, name=label)
        for user in weight.users:
            for source in list(user.all_input_nodes):
                if source.op == "get_attr" and program.constant(source) is program.constant(weight.read):
                    user.replace_input_with(source, quantized)
        return quantized
