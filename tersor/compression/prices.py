"""What allotments of channels cost: by a table of layers, quickly, and by what the target says, where it is a model."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from torch import fx

from tersor.ir.shapes import KEY
from tersor.passes.preferences import Multiples
from tersor.passes.pruning.axes import Axis, Remaining
from tersor.passes.pruning.costs import Costs
from tersor.passes.pruning.layer_table import LayerTable
from tersor.passes.quantization.roles import WEIGHTS

from .measurement import Measured

Key = tuple[int, ...]
"""How many indices stay of each axis, in the order of the axes: an allotment."""


_AGREED = 3
"""Answers that were foreseen before what is foreseen is no longer asked for."""

_CLOSE = 2e-4
"""The share by which an answer may be off what was foreseen."""


@dataclass
class Prices:
    """What allotments cost.

    ask: what the target says of one, None where it refuses it. Without it time is measured, and the table of layers
    decides: that is measured once, so that of two allotments the noise of a measurement does not.
    lookups: how often it may still be asked. told: what it said. errors: the logarithm of that over the estimate.
    agreed: how often it said what was foreseen, of layers all of which it had told of; minus infinity once it did not.
    """

    estimates: Estimates
    ask: Callable[[Key], Measured | None] | None
    lookups: int
    told: dict[Key, float] = field(default_factory=dict)
    errors: dict[Key, float] = field(default_factory=dict)
    agreed: float = 0

    @property
    def exact(self) -> bool:
        """Whether the target is asked."""
        return self.ask is not None

    def __call__(self, key: Key) -> float:
        """The cost, infinite where the target refuses it."""
        if self.ask is None:
            return self.estimates(key)
        if key not in self.told:
            foreseen = self.estimates.are_told(key)
            if foreseen and self.agreed >= _AGREED:
                self.told[key] = self.estimates(key)
            else:
                self.lookups -= 1
                self.told[key] = self._learnt(key, self.ask(key), foreseen)
        return self.told[key]

    def _learnt(self, key: Key, found: Measured | None, foreseen: bool) -> float:
        if found is None or found.latency is None:
            return math.inf
        estimate = self.estimates(key)
        if foreseen:
            self.agreed += 1 if math.isclose(found.latency, estimate, rel_tol=_CLOSE) else -math.inf
        if min(found.latency, estimate) > 0:
            self.errors[key] = math.log(found.latency / estimate)
        self.estimates.learn(key, found.layers)
        return found.latency


class Estimates:
    """Costs by a table of layers, quickly, and better with each allotment that the target was asked about.

    What a layer costs is kept by how many indices are left of its own axes: as the target said, where it was asked;
    else as the table says, with channels in whole multiples.
    """

    def __init__(self, table: LayerTable, costs: Costs, axes: Sequence[Axis], multiples: Multiples) -> None:
        self._table, self._costs, self._axes, self._multiples = table, costs, axes, multiples
        whole = {node: table.of_node(costs, node, Remaining({})) for node in table.nodes(costs)}
        cut = [Remaining({axis: 1}) for axis in axes]
        self._places = {
            node: [place for place, left in enumerate(cut) if table.of_node(costs, node, left) != cost]
            for node, cost in whole.items()
        }
        self._filled = {node: filled(costs, node, multiples) for node in whole}
        self._layers: dict[fx.Node, dict[Key, float]] = {node: {} for node in whole}
        self._fixed: dict[fx.Node, float] = {}
        self._told: set[tuple[fx.Node, Key]] = set()
        self._known: dict[Key, float] = {}

    def __call__(self, key: Key) -> float:
        """The cost with so many indices left of each axis."""
        if key not in self._known:
            self._known[key] = self._table.total([self._of(node, key) for node in self._layers])
        return self._known[key]

    def _of(self, node: fx.Node, key: Key) -> float:
        known, own = self._layers[node], self._own(node, key)
        if own not in known:
            left = Remaining({self._axes[place]: key[place] for place in self._places[node]})
            more = filled(self._costs, node, self._multiples, left) / self._filled[node]
            known[own] = self._table.of_node(self._costs, node, left) * more
        return known[own]

    def _own(self, node: fx.Node, key: Key) -> Key:
        return tuple(key[place] for place in self._places[node])

    def are_told(self, key: Key) -> bool:
        """Whether the target told of all layers with so many indices left of their own axes."""
        return all((node, self._own(node, key)) in self._told for node in self._layers)

    def learn(self, key: Key, layers: Mapping[str, float]) -> None:
        """What the target said of each layer, beside what the first time was more than the table says.

        Where layers run at once there is nothing to learn: what one takes depends on what the others leave of the part.
        """
        if self._table.at_once:
            return
        for node, known in self._layers.items():
            if node.name in layers:
                fixed = self._fixed.setdefault(node, layers[node.name] - self._of(node, key))
                known[own := self._own(node, key)] = layers[node.name] - fixed
                self._told.add((node, own))
        self._known.clear()


def filled(costs: Costs, node: fx.Node, multiples: Multiples, left: Remaining | None = None) -> float:
    """How many times more a layer computes than it has weights, where outputs and inputs are filled up to multiples."""
    layout = WEIGHTS.get(node.target)
    weight = None if layout is None else node.args[layout.weight]
    if not isinstance(weight, fx.Node):
        return 1.0
    outputs, inputs = costs.shapes(left or Remaining({}))(weight.meta[KEY])[:2]
    return up(outputs, multiples.outputs) / outputs * up(inputs, multiples.inputs) / inputs


def up(count: int, multiple: int) -> int:
    """The next multiple."""
    return -(-count // multiple) * multiple
