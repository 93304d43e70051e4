"""What a program costs and is worth: what attempts are judged by."""

from __future__ import annotations

import dataclasses
import math
from collections import defaultdict
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import torch
from torch import fx

from tersor.backends.base import Backend
from tersor.backends.clock import Clock
from tersor.backends.layer_costs import LayerCosts
from tersor.ir.accumulators import is_accumulator
from tersor.ir.errors import LoweringError, PassError, TersorError
from tersor.ir.integer_operators import REQUANTIZE
from tersor.ir.macs import RULES as MULTIPLIES
from tersor.ir.operators import FAKE_QUANTIZE
from tersor.ir.program import REPLACES, Program

from ..run_record import Timing


@dataclass(frozen=True)
class Measured:
    """latency: in the target's unit, which is worth `seconds` of time where that is known; None where not measured.

    layers: the same by node of the program before it was quantized; their sum, or the slowest of them where they run
    at_once. spread: how far the middle half of measured calls lie apart, in the unit of the latency.
    """

    bytes: int
    macs: int
    parameters: int
    latency: float | None = None
    unit: str = ""
    seconds: float | None = None
    clock: Clock = Clock.MEASURED
    source: str = ""
    metric: float | None = None
    layers: Mapping[str, float] = field(default_factory=dict)
    at_once: bool = False
    spread: float = 0.0

    def cost(self, what: str) -> float | None:
        """`latency`, `bytes` or `macs`."""
        found: float | None = getattr(self, what)
        return found

    @property
    def timing(self) -> Timing | None:
        """The latency as a record of runs has it, where it is time."""
        if self.latency is None or self.seconds is None:
            return None
        return Timing(self.latency * self.seconds, self.clock, self.source)

    def costs(self) -> dict[str, float]:
        """By name, for a record."""
        found: dict[str, float] = {"bytes": self.bytes, "macs": self.macs, "parameters": self.parameters}
        if self.latency is not None and self.seconds is not None:
            found["latency_ms"] = self.latency * self.seconds * 1e3
        elif self.latency is not None:
            found[self.unit] = self.latency
        return found


@dataclass(frozen=True)
class Gauge:
    """Measures programs for one target.

    evaluate: the metric of a program; None measures none. timed: whether latency is wanted of every program.
    """

    target: Backend
    evaluate: Callable[[Program], float] | None = None
    timed: bool = True

    def costs(self, program: Program, *, timed: bool | None = None, verify: bool = True) -> Measured:
        """What it costs. verify: whether the passes of the target are checked.

        Raises what the target raises where it does not take the program.
        """
        program = program.to("cpu")
        cost = program.cost()
        plain = Measured(cost.parameter_bytes, cost.macs, cost.parameters)
        prepared = self.target.prepare(program, verify=verify)
        if not (self.timed if timed is None else timed):
            return plain
        found = self.target.prepared_costs(prepared)
        return dataclasses.replace(
            plain,
            latency=found.total,
            unit=found.unit,
            seconds=found.seconds,
            clock=found.clock,
            source=found.source,
            layers=_by_layer(found, prepared, program),
            at_once=found.at_once,
            spread=found.spread,
        )

    def metric(self, program: Program) -> float | None:
        """Its metric on held-out data, None without one. Raises PassError where that fails, or gives no number."""
        return None if self.evaluate is None else self.score(program)

    def score(self, program: Program) -> float:
        """Its metric, of which there is one."""
        assert self.evaluate is not None
        try:
            with torch.no_grad():
                value = float(self.evaluate(program))
        except TersorError:
            raise
        except Exception as error:  # a metric is somebody's code and may raise anything
            raise PassError(
                f"the metric failed: {type(error).__name__}: {error}",
                expected="a number, or a tensor of one value",
                hint="metric(program), or with validation= metric(outputs, *targets)",
            ) from error
        if not math.isfinite(value):
            raise PassError(
                "the metric gave no number",
                expected="a finite number",
                found=value,
                hint="look at the metric, and at what it is measured on",
            )
        return value

    def takes(self, program: Program) -> bool:
        """Whether the target takes a program as it is."""
        try:
            self.target.prepare(program)
        except (LoweringError, PassError):
            return False
        return True


def _by_layer(found: LayerCosts, prepared: Program, program: Program) -> dict[str, float]:
    """Costs by layers of the program that nodes of the lowered one stand for: products, where they requantize one.

    What one unit computes stands once in costs of layers that run at once, under each of its nodes.
    """
    nodes = {node.name: node for node in prepared.graph.nodes}
    products = [node for node in program.graph.nodes if node.target in MULTIPLIES]
    # A convolution into which a norm was folded goes by the norm's name.
    own = {str(node.meta.get(REPLACES, node.name)): node.name for node in products}
    layers: dict[str, float] = defaultdict(float)
    for name, cost in found.nodes.items():
        layer = _layer(nodes[name]) if name in nodes else name
        layer = own.get(layer, layer)
        layers[layer] = max(layers[layer], cost) if found.at_once else layers[layer] + cost
    return dict(layers)


def _layer(node: fx.Node) -> str:
    """The name that the layer of a node had before it was quantized and lowered."""
    if node.target is FAKE_QUANTIZE and isinstance(node.args[0], fx.Node):
        return _layer(node.args[0])
    if node.target is REQUANTIZE:
        node = next(filter(is_accumulator, node.all_input_nodes), node)
    return str(node.meta.get(REPLACES, node.name))
