"""Mark the values that are to be quantized."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, replace
from typing import ClassVar

from torch import fx

from tersor.ir.errors import PassError
from tersor.ir.macs import RULES as MULTIPLIES
from tersor.ir.operators import OBSERVE
from tersor.ir.program import Program
from tersor.ir.quantization import INT8, Granularity, QuantType, Scheme
from tersor.ir.stage import Stage

from ..base import Pass, PassResult, Promise
from .finite import refuse_unfinite_weights
from .placement import Coverage, Place, Placement, matches, operator_of, place
from .roles import WEIGHTS, Role, role_of


@dataclass(frozen=True)
class InsertFakeQuant(Pass):
    """Insert an observer wherever a value will live on an integer grid. `Calibrate` turns observers into fake-quantize.

        %conv2d = aten.conv2d(%x, @w, @b)          %x_observed = tersor.observe(%x, x, ...)
        %relu   = aten.relu(%conv2d)          ->   %w_observed = tersor.observe(@w, w, 0, ...)
                                                   %conv2d = aten.conv2d(%x_observed, %w_observed, @b)
                                                   %relu = aten.relu(%conv2d)
                                                   %relu_observed = tersor.observe(%relu, relu, ...)

    Batch norm should be folded before, or it stands as float between convolutions; `Quantize` does that.

    scheme: the grids of activations and weights.
    coverage: what is quantized besides convolutions and linears (see `Coverage`).
    operators: only these, as `("conv2d", "linear")`; empty means all that have a role.
    skip: regular expressions of node names or module paths that stay float, as `("classifier", r"layers\\.0\\..*")`.
    only: patterns of the layers with weights that are quantized, the others staying float; empty means all.
    symmetric: patterns of layers that read activations with zero point 0, whatever the scheme says.
    four_bits: patterns of layers whose weights have 4 bits, whatever the scheme says.

    Raises PassError where an entry of `operators` or `skip` matches nothing, or nothing is left to quantize.
    """

    takes: ClassVar[frozenset[Stage]] = frozenset({Stage.FLOAT})
    gives: ClassVar[Stage | None] = Stage.FAKE_QUANT
    promise: ClassVar[Promise] = Promise.EXACT

    scheme: Scheme = INT8
    coverage: Coverage = Coverage.FASTEST
    operators: tuple[str, ...] = ()
    skip: tuple[str, ...] = ()
    only: tuple[str, ...] = ()
    symmetric: tuple[str, ...] = ()
    four_bits: tuple[str, ...] = ()

    def run(self, program: Program) -> PassResult:
        """Insert the observers."""
        refuse_unfinite_weights(program)
        self._refuse_unmatched(program)
        plan = place(program, self.coverage, self.operators, self.skip, self.only)
        if not self._has_work(plan):
            raise self._nothing(program)
        for spot in plan.places:
            self._observe_activation(program, spot)
        weights: dict[str, fx.Node] = {}
        for node, role in plan.quantized.items():
            if role is Role.COMPUTE:
                self._observe_weight(program, node, weights)
        kinds = ", ".join(f"{count} {name}" for name, count in Counter(map(operator_of, plan.quantized)).items())
        return PassResult(program, True, (f"quantizes {kinds}", f"{len(plan.places)} activations on grids"))

    def _nothing(self, program: Program) -> PassError:
        kernels = sorted(target._opname for target in WEIGHTS)  # type: ignore[attr-defined]
        products = [node for node in program.graph.nodes if node.target in MULTIPLIES]
        heavy = {operator_of(node) for node in products if role_of(program, node) is Role.FLOAT}
        return PassError(
            "there is nothing to quantize",
            expected=f"at least one of {', '.join(kernels)}",
            found=f"operators={self.operators}, skip={self.skip}" if self.operators or self.skip else None,
            hint=f"{', '.join(sorted(heavy))} has no integer kernel, and stays float" if heavy else None,
        )

    def _has_work(self, plan: Placement) -> bool:
        """A kernel has to gain by it; where everything is to be integer, any operator is a reason."""
        everything = self.coverage is Coverage.EVERYTHING
        return any(everything or role is Role.COMPUTE for role in plan.quantized.values())

    def _refuse_unmatched(self, program: Program) -> None:
        calls = [node for node in program.graph.nodes if node.op == "call_function"]
        for name in self.operators:
            if not any(operator_of(node) == name for node in calls):
                known = sorted({operator_of(node) for node in calls if role_of(program, node) is not Role.FLOAT})
                raise PassError(f"operators={name!r} is not in the program", expected=f"among {', '.join(known)}")
        for option, patterns in (("skip", self.skip), ("only", self.only), ("symmetric", self.symmetric),
                                 ("four_bits", self.four_bits)):  # fmt: skip
            for pattern in patterns:
                if not any(matches(node, pattern) for node in calls):
                    raise PassError(f"{option}={pattern!r} matches no node and no module", hint="see `print(program)`")

    def _observe_activation(self, program: Program, spot: Place) -> None:
        users = tuple(spot.node.users) if spot.users is None else spot.users
        kind = self.scheme.activation
        if self.symmetric and any(matches(user, pattern) for user in users for pattern in self.symmetric):
            kind = replace(kind, symmetric=True)
        with program.graph.inserting_after(_last_input(spot.node)):
            observed = _observe(program, spot.node, spot.group, None, kind)
        for user in users:
            user.replace_input_with(spot.node, observed)

    def _observe_weight(self, program: Program, node: fx.Node, seen: dict[str, fx.Node]) -> None:
        layout, kind = WEIGHTS[node.target], self.scheme.weight
        weight = node.args[layout.weight]
        assert isinstance(weight, fx.Node)
        if any(matches(node, pattern) for pattern in self.four_bits):
            kind = replace(kind, bits=4)
        key = str(weight.target) if kind == self.scheme.weight else f"{weight.target}.4"
        if key not in seen:
            axis = layout.axis if kind.granularity is Granularity.PER_CHANNEL else None
            with program.graph.inserting_after(weight):
                seen[key] = _observe(program, weight, key, axis, kind)
        node.update_arg(layout.weight, seen[key])


def _observe(program: Program, node: fx.Node, group: str, axis: int | None, kind: QuantType) -> fx.Node:
    name = node.name if node.op != "get_attr" else str(node.target).replace(".", "_")
    arguments = (node, group, axis, kind.qmin, kind.qmax, kind.symmetric)
    return program.call(OBSERVE, arguments, like=node, name=f"{name}_observed")


def _last_input(node: fx.Node) -> fx.Node:
    """Where to insert after `node`: after all inputs, when it is one, so that inputs stay together."""
    while node.op == "placeholder" and node.next.op == "placeholder":
        node = node.next
    return node
