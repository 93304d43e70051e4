"""What each layer costs on some machine: what decides which channels go where time is to be saved."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from torch import fx

from tersor.ir.errors import PassError
from tersor.ir.program import Program

from .analysis import dimensions
from .axes import Remaining
from .costs import Costs

_MILLION = 1e6
_SHARPNESS = 4.0
"""The power mean that stands for the slowest of layers that run at once: those near to it count as well."""


@dataclass(frozen=True)
class LayerTable:
    """The cost of a program layer by layer, for `Latency(share, table)`.

    A layer's cost is taken to fall as its multiply-accumulates do, or as the values that it writes where it multiplies
    nothing. Together with what a channel is worth that says which to cut: the cost of a channel is that of every layer
    that it runs through (Yang et al. 2018, arXiv:1804.03230; Shen et al. 2022, arXiv:2110.10811).

    rates: by node, what a million of its multiply-accumulates costs, or of its values. unit: of costs, as `ms`.
    rest: what no cut changes. at_once: whether layers all run at once, so that the slowest counts and not their sum.

    Calling it raises PassError for a program that has none of the nodes.
    """

    rates: Mapping[str, float] = field(default_factory=dict)
    unit: str = "ms"
    rest: float = 0.0
    at_once: bool = False

    @classmethod
    def of(
        cls, program: Program, costs: Mapping[str, float], unit: str = "ms", rest: float = 0.0, at_once: bool = False
    ) -> LayerTable:
        """From what the nodes of a program cost; those that it has not are part of the rest."""
        found = Costs(program, dimensions(program))
        rates = {}
        for node in program.graph.nodes:
            work = found.work(node, Remaining({})) if node.name in costs and found.works(node) else 0
            if work:
                rates[node.name] = _short(costs[node.name] / work * _MILLION)
        lost = sum(cost for name, cost in costs.items() if name not in rates)
        return cls(rates, unit, 0.0 if at_once else _short(rest + lost), at_once)

    def __call__(self, costs: Costs, left: Remaining) -> float:
        """The cost with so many indices left, in the table's unit."""
        return self.total([self.of_node(costs, node, left) for node in self.nodes(costs)])

    def nodes(self, costs: Costs) -> list[fx.Node]:
        """Those of a program that it knows. Raises PassError where it knows none."""
        found = [node for node in costs.program.graph.nodes if node.name in self.rates and costs.works(node)]
        if not found:
            raise PassError("the table of layers is of another program", expected=", ".join(list(self.rates)[:4]))
        return found

    def of_node(self, costs: Costs, node: fx.Node, left: Remaining) -> float:
        """What one of them costs with so many indices left."""
        return self.rates[node.name] * costs.work(node, left) / _MILLION

    def total(self, each: Sequence[float]) -> float:
        """The whole, of what its nodes cost."""
        if not self.at_once:
            return self.rest + sum(each)
        return float(sum(cost**_SHARPNESS for cost in each) ** (1 / _SHARPNESS))


def _short(value: float) -> float:
    """Four digits: what is measured is no more exact, and a recipe stays readable."""
    return float(f"{value:.4g}")
