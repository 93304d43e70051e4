"""Put weights of linears on grids, and what they read on grids that are found at run time."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, fx

from tersor.ir.block_operators import FAKE_QUANTIZE_DYNAMIC
from tersor.ir.errors import CalibrationError, PassError
from tersor.ir.operators import FAKE_QUANTIZE
from tersor.ir.program import Program
from tersor.ir.quantization import INT8, Granularity, Observer, QuantType
from tersor.ir.stage import Stage

from ..base import Pass, PassResult, Promise
from .finite import refuse_unfinite_weights
from .observers import pair_safe_scales, weight_scales
from .placement import matches
from .roles import Role, role_of


@dataclass(frozen=True)
class InsertDynamicQuant(Pass):
    """Dynamic quantization of linears: weights on static int8 grids, activations on a grid of each run's own values.

        %linear = aten.linear(%x, @w, @b)   ->   %x_dynamic = tersor.fake_quantize_dynamic(%x, False)
                                                 %w_quantized = tersor.fake_quantize(@w, scale, zero, 0, -127, 127)
                                                 %linear = aten.linear(%x_dynamic, %w_quantized, @b)

    It needs no data, and no input can fall outside the range. Finding the range takes time, so it is slower than static
    quantization, and biases stay float. A weight that several linears share has one grid.

    per_token: a scale for each row of what a linear reads, instead of one for all: outlier tokens do not hurt others.
    weight: the grid of weights. pair_safe: see `Calibrate`. skip: as for `InsertFakeQuant`.

    Raises PassError where nothing is left to quantize, CalibrationError where a weight is not finite.
    """

    takes: ClassVar[frozenset[Stage]] = frozenset({Stage.FLOAT})
    gives: ClassVar[Stage | None] = Stage.FAKE_QUANT
    promise: ClassVar[Promise] = Promise.APPROXIMATE

    per_token: bool = False
    weight: QuantType = INT8.weight
    pair_safe: bool = True
    skip: tuple[str, ...] = ()

    def run(self, program: Program) -> PassResult:
        """Insert both kinds of grids."""
        refuse_unfinite_weights(program)
        self._refuse_unmatched(program)
        linears = [node for node in program.graph.nodes if self._wanted(program, node)]
        if not linears:
            raise PassError("there is nothing to quantize", expected="a linear with a constant weight")
        activations: dict[fx.Node, fx.Node] = {}
        weights: dict[int, fx.Node] = {}
        for linear in linears:
            source, weight = linear.args[0], linear.args[1]
            assert isinstance(source, fx.Node)
            assert isinstance(weight, fx.Node)
            key = id(program.constant(weight))
            with program.graph.inserting_before(linear):
                if key not in weights:
                    weights[key] = self._weight(program, weight)
                if source not in activations:
                    name = f"{source.name}_dynamic"
                    activations[source] = program.call(
                        FAKE_QUANTIZE_DYNAMIC, (source, self.per_token), like=source, name=name
                    )
            linear.update_arg(0, activations[source])
            linear.update_arg(1, weights[key])
        kind = "a token" if self.per_token else "a tensor"
        return PassResult(
            program, True, (f"{len(linears)} linears, activations with a scale {kind} found at run time",)
        )

    def _refuse_unmatched(self, program: Program) -> None:
        for pattern in self.skip:
            if not any(matches(node, pattern) for node in program.graph.nodes if node.op == "call_function"):
                raise PassError(f"skip={pattern!r} matches no node and no module", hint="see `print(program)`")

    def _wanted(self, program: Program, node: fx.Node) -> bool:
        if node.target is not torch.ops.aten.linear.default or role_of(program, node) is not Role.COMPUTE:
            return False
        weight = program.constant(node.args[1])
        return weight is not None and weight.dim() == 2 and not any(matches(node, p) for p in self.skip)

    def _weight(self, program: Program, weight: fx.Node) -> fx.Node:
        tensor = program.tensor(str(weight.target))
        axis = 0 if self.weight.granularity is Granularity.PER_CHANNEL else None
        try:
            scale = weight_scales(tensor, axis, self.weight, Observer.MIN_MAX)
        except CalibrationError as error:
            raise CalibrationError(error.what, node=weight, found=error.found) from None
        if self.pair_safe and self.weight.bits == 8:
            scale = pair_safe_scales(tensor, scale, axis)
        zero: Tensor = torch.zeros_like(scale, dtype=torch.int32)
        label = str(weight.target).replace(".", "_")
        names = (program.add_tensor(f"quantization.{label}.{part}", value) for part, value in
                 (("scale", scale), ("zero_point", zero)))  # fmt: skip
        read = program.attribute(str(weight.target))
        arguments = (read, *(program.attribute(name) for name in names), axis, self.weight.qmin, self.weight.qmax)
        return program.call(FAKE_QUANTIZE, arguments, like=weight, name=f"{label}_quantized")
