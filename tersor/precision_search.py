"""Mixed precision by integer programming: the cheapest precision of each layer whose errors fit a budget."""

from __future__ import annotations

import math
import tempfile
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, fx, nn

from tersor.backends.base import Backend
from tersor.frontends.torch_export import trace
from tersor.ir.errors import MissingDependencyError, PassError
from tersor.ir.program import Program
from tersor.ir.quantization import INT8, W4A8, Observer, QuantType
from tersor.passes.base import Pass
from tersor.passes.canonical.canonicalize import Canonicalize
from tersor.passes.manager import PassManager
from tersor.passes.progress import track
from tersor.passes.quantization.apply_precision import ApplyPrecision
from tersor.passes.quantization.block_weights import BlockScheme, on_blocks
from tersor.passes.quantization.calibration_data import Replay, required
from tersor.passes.quantization.injection import Injection
from tersor.passes.quantization.observers import Range, pair_safe_scales, weight_scales
from tersor.passes.quantization.output_range import Readers, quantized_within
from tersor.passes.quantization.precision_plan import Precision, PrecisionPlan
from tersor.passes.quantization.roles import WEIGHTS, Role, role_of
from tersor.passes.quantization.smooth_quant import SmoothQuant
from tersor.passes.report import quantity
from tersor.passes.rewriting.fold_batchnorm import FoldBatchNorm

from .lowering import lower, resolve
from .timing import measure, torch_threads

EVERY = tuple(Precision)
_BLOCKS = {
    Precision.INT8_WEIGHTS: BlockScheme(8, 32, symmetric=True),
    Precision.INT4_WEIGHTS: BlockScheme(4, 32, symmetric=True),
    Precision.INT4_WEIGHTS_ASYMMETRIC: BlockScheme(4, 32, symmetric=False),
}
_TRIES = (60.0, 50.0, 45.0, 40.0, 35.0, 30.0, 25.0, 20.0, 15.0)
"""The dB tried, the most exact first, where the budget is a metric."""


# -- cost ------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class LayerCost(ABC):
    """What a layer costs at a precision."""

    @property
    @abstractmethod
    def unit(self) -> str:
        """The unit, as `bytes`."""

    @abstractmethod
    def of(self, layer: Layer, precision: Precision) -> float:
        """The cost of one layer."""


@dataclass(frozen=True)
class WeightBytes(LayerCost):
    """What the layer's weight takes in storage, its scales and zero points included."""

    @property
    def unit(self) -> str:
        return "bytes"

    def of(self, layer: Layer, precision: Precision) -> float:
        """Bytes of the weight."""
        values = layer.weight.numel()
        if precision is Precision.FLOAT32:
            return 4.0 * values
        if precision.is_static:
            return values * (0.5 if precision is Precision.W4A8 else 1.0) + 8.0 * layer.weight.shape[0]
        scheme = _BLOCKS[precision]
        blocks = layer.weight.shape[0] * -(-layer.weight.shape[1] // scheme.block)
        zeros = 0.0 if scheme.symmetric else blocks * scheme.bits / 8
        return values * scheme.bits / 8 + 4.0 * blocks + zeros


@dataclass(frozen=True)
class LayerLatency(LayerCost):
    """Milliseconds that the layer alone takes on a target, measured here on one thread; equal layers are measured once.

    target: a name, or the target's dataclass, whose artifacts can run on this machine. seconds: for each measurement.
    """

    target: str | Backend = "onnxruntime"
    seconds: float = 0.1
    _known: dict[tuple[Any, ...], float] = field(default_factory=dict, compare=False, repr=False)

    @property
    def unit(self) -> str:
        return f"ms on {resolve(self.target).name}"

    def of(self, layer: Layer, precision: Precision) -> float:
        """Milliseconds, the median."""
        rest = layer.node.args[3:]
        key = (str(layer.node.target), tuple(layer.weight.shape), tuple(layer.input.shape), str(rest), precision)
        if key not in self._known:
            self._known[key] = self._measure(layer, precision)
        return self._known[key]

    def _measure(self, layer: Layer, precision: Precision) -> float:
        program = trace(_Alone(layer), (layer.input,))
        name = next(node.name for node in program.graph.nodes if node.target is layer.node.target)
        plan = PrecisionPlan({name: precision})
        step: Pass = ApplyPrecision(plan, [layer.input])
        quantized = PassManager([step], verify=False, progress=False).run(program).program
        with tempfile.TemporaryDirectory() as folder, torch_threads(1):
            artifact = lower(quantized, self.target, Path(folder))
            if hasattr(artifact, "set_threads"):
                artifact.set_threads(1)
            found = measure({"layer": lambda: artifact.run_flat([layer.input])}, seconds=self.seconds)
        return 1e3 * found["layer"].median


class _Alone(nn.Module):
    """One layer as a model."""

    def __init__(self, layer: Layer) -> None:
        super().__init__()
        self.weight = nn.Parameter(layer.weight.clone())
        self.bias = None if layer.bias is None else nn.Parameter(layer.bias.clone())
        self.operator, self.rest = layer.node.target, layer.node.args[3:]

    def forward(self, x: Tensor) -> Tensor:
        """What the layer reads to what it gives."""
        result: Tensor = self.operator(x, self.weight, self.bias, *self.rest)  # type: ignore[operator]  # an operator
        return result


# -- sensitivity -----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Layer:
    """A layer whose precision is chosen: its node, its tensors, and one batch of what it reads."""

    node: fx.Node
    weight: Tensor
    bias: Tensor | None
    input: Tensor


@dataclass(frozen=True)
class Option:
    """One layer at one precision: the noise it causes at the outputs, as a share of their power, and its cost."""

    precision: Precision
    noise: float
    cost: float


def sensitivities(
    program: Program, batches: Iterable[Any], precisions: Sequence[Precision], cost: LayerCost, count: int = 2
) -> dict[str, tuple[Option, ...]]:
    """The options of each layer with a weight, by node name. The program is canonical, float, and smoothed.

    Every layer is quantized alone, and the error of its result followed to the outputs.
    """
    nodes = [node for node in program.graph.nodes if role_of(program, node) is Role.COMPUTE]
    noise: dict[tuple[str, Precision], float] = {}
    layers: dict[str, Layer] = {}
    signal = 0.0
    for inputs in required(program, batches, count):
        injection = Injection(program, inputs)
        signal += sum(_power(injection.values[node]) for node in program.outputs)
        for node in track(nodes, "weigh precisions"):
            layer = _layer(program, node, injection)
            layers.setdefault(node.name, layer)
            for precision in _possible(layer, precisions):
                value = _computed(layer, precision)
                found = 0.0 if value is None else sum(_power(e) for e in injection.output_errors(node, value))
                noise[node.name, precision] = noise.get((node.name, precision), 0.0) + found
    return {
        name: tuple(
            Option(precision, noise[name, precision] / (signal or 1.0), cost.of(layer, precision))
            for precision in _possible(layer, precisions)
        )
        for name, layer in layers.items()
    }


def _layer(program: Program, node: fx.Node, injection: Injection) -> Layer:
    layout = WEIGHTS[node.target]
    weight = program.constant(node.args[layout.weight])
    assert weight is not None  # role_of holds
    bias = program.constant(node.args[layout.bias]) if len(node.args) > layout.bias else None
    value = injection.values[node.args[0]]  # type: ignore[index]  # a node
    return Layer(node, weight.detach(), None if bias is None else bias.detach(), value)


def _possible(layer: Layer, precisions: Sequence[Precision]) -> list[Precision]:
    linear = layer.node.target is torch.ops.aten.linear.default
    return [p for p in precisions if p is Precision.FLOAT32 or p.is_static or linear]


def _computed(layer: Layer, precision: Precision) -> Tensor | None:
    """The layer's result at a precision; None where that is float."""
    if precision is Precision.FLOAT32:
        return None
    value, weight = layer.input, layer.weight.float()
    if precision.is_static:
        kind = QuantType(8, symmetric=precision is Precision.INT8_SYMMETRIC)
        readers = Readers((layer.node,), ((weight, layer.bias),))
        readers.add(value)
        low, high = (bound.item() for bound in torch.aminmax(value))
        value = quantized_within(value, readers.choose(Range(min(low, 0.0), max(high, 0.0)), kind), kind)
        axis = WEIGHTS[layer.node.target].axis
        grid = (W4A8 if precision is Precision.W4A8 else INT8).weight
        scale = weight_scales(weight, axis, grid, Observer.MIN_MAX)
        scale = pair_safe_scales(weight, scale, axis) if grid.bits == INT8.weight.bits else scale
        scale = scale.reshape(-1, *[1] * (weight.dim() - 1))
        weight = torch.round(weight / scale).clamp(grid.qmin, grid.qmax) * scale
    else:
        weight = on_blocks(weight, -1, _BLOCKS[precision])
    with torch.no_grad():
        rest = layer.node.args[3:]
        result: Tensor = layer.node.target(value, weight, layer.bias, *rest)  # type: ignore[operator]  # an operator
    return result


def _power(value: Any) -> float:
    if not isinstance(value, Tensor) or not value.is_floating_point():
        return 0.0
    wide = value.double()
    return float(wide[torch.isfinite(wide)].square().sum())


# -- choice ----------------------------------------------------------------------------------------------------------


def choose(options: dict[str, tuple[Option, ...]], budget: float) -> dict[str, Option]:
    """The cheapest option of each layer whose noises sum to at most `budget`: an integer program, solved exactly.

    Raises MissingDependencyError without scipy, PassError where even the most exact options exceed the budget.
    """
    least = sum(min(option.noise for option in found) for found in options.values())
    if least > budget:
        raise PassError(
            "no choice of precisions is exact enough",
            expected=f"an error of {_decibels(budget):.1f} dB",
            found=f"{_decibels(least):.1f} dB at best",
            hint="allow float32, or ask for less",
        )
    return _solved(options, lambda option: option.cost, lambda option: option.noise, budget)


def most_exact(options: dict[str, tuple[Option, ...]], budget: float) -> dict[str, Option]:
    """The option of each layer of least noise whose costs sum to at most `budget`, solved as exactly as `choose`.

    Raises MissingDependencyError without scipy, PassError where even the cheapest options exceed the budget.
    """
    least = sum(min(option.cost for option in found) for found in options.values())
    if least > budget:
        raise PassError(
            "no choice of precisions is so cheap",
            expected=f"a cost of {budget:.4g}",
            found=f"{least:.4g} at best",
            hint="allow fewer bits, or more",
        )
    return _solved(options, lambda option: option.noise, lambda option: option.cost, budget)


def _solved(
    options: dict[str, tuple[Option, ...]],
    least: Callable[[Option], float],
    bounded: Callable[[Option], float],
    bound: float,
) -> dict[str, Option]:
    """Minimize the sum of least(l, p) x[l, p] over binary x, with one p for each l and the sum of bounded(l, p) x[l, p]
    at most the bound. The solver is HiGHS, through scipy."""
    try:
        from scipy.optimize import Bounds, LinearConstraint, milp
    except ImportError as error:
        raise MissingDependencyError("the search needs scipy", hint="pip install 'tersor[search]'") from error
    # One option that exceeds the bound alone is in no choice, and would stretch the numbers that the solver sees.
    flat = [(name, option) for name, found in options.items() for option in found if bounded(option) <= bound]
    places = {name: index for index, name in enumerate(options)}
    groups = torch.zeros(len(options), len(flat), dtype=torch.float64)
    for column, (name, _) in enumerate(flat):
        groups[places[name], column] = 1
    limited = torch.tensor([[bounded(option) / (bound or 1.0) for _, option in flat]], dtype=torch.float64)
    wanted = torch.tensor([least(option) for _, option in flat], dtype=torch.float64)
    found = milp(
        (wanted / wanted.abs().max().clamp(min=1e-30)).numpy(),
        constraints=[
            LinearConstraint(groups.numpy(), 1, 1),
            LinearConstraint(limited.numpy(), -math.inf, 1.0 if bound else 0.0),
        ],
        integrality=1,
        bounds=Bounds(0, 1),
        options={"mip_rel_gap": 0.0},
    )
    if found.x is None:
        raise PassError("the solver found no choice", found=str(found.message))
    return {name: option for (name, option), taken in zip(flat, found.x, strict=True) if taken > 0.5}


def search_precision(
    program: Program,
    batches: Iterable[Any],
    *,
    sqnr: float | None = None,
    metric: Callable[[Program], float] | None = None,
    drop: float = 0.0,
    within: float | None = None,
    cost: LayerCost | None = None,
    precisions: Sequence[Precision] = EVERY,
    count: int = 2,
) -> PrecisionPlan:
    """Choose the precision of each layer by integer programming: the least cost within an error, or the reverse.

    program: float. batches: calibration data; sensitivity is judged on the first `count`.
    sqnr: the budget, in dB at the outputs. Or metric: a function of a program, higher being better; the cheapest
        plan is
        taken that loses at most `drop` of it, of the plans for a ladder of dB, each quantized and scored.
        Or within: what the layers may cost together, of which the most exact plan is taken.
    cost: `WeightBytes()`, or `LayerLatency(target)`. precisions: those allowed.

    Returns a plan; `ApplyPrecision(plan, calibration=batches)` carries it out. Noises of single layers are taken to add
    up, which they do while they are small: score the result.

    Raises PassError where nothing fits the budget, MissingDependencyError without scipy.
    """
    given = [name for name, value in (("sqnr", sqnr), ("metric", metric), ("within", within)) if value is not None]
    if len(given) != 1:
        found = " and ".join(given) or "none"
        raise PassError("give one budget: sqnr in dB, a metric, or within which cost", found=found)
    cost = cost or WeightBytes()
    data = Replay(batches)
    options = weigh(program, data, precisions, cost, count)
    if sqnr is not None:
        return plan_of(options, choose(options, 10 ** (-sqnr / 10)), cost)
    if within is not None:
        return plan_of(options, most_exact(options, within), cost)
    assert metric is not None
    return _by_metric(program, data, options, cost, metric, drop)


def weigh(
    program: Program, data: Replay, precisions: Sequence[Precision], cost: LayerCost, count: int = 2
) -> dict[str, tuple[Option, ...]]:
    """The options of each layer of a float program, prepared as `ApplyPrecision` does. Raises PassError without any."""
    static = any(precision.is_static for precision in precisions)
    before: list[Pass] = [Canonicalize(), FoldBatchNorm(), *([SmoothQuant(data)] if static else [])]
    prepared = PassManager(before, progress=False).run(program).program
    options = sensitivities(prepared, data, precisions, cost, count)
    if not options:
        raise PassError("there is no layer with a weight to choose for")
    return options


def _by_metric(
    program: Program,
    data: Replay,
    options: dict[str, tuple[Option, ...]],
    cost: LayerCost,
    metric: Callable[[Program], float],
    drop: float,
) -> PrecisionPlan:
    wanted = metric(program) - drop
    kept: PrecisionPlan | None = None
    for budget in track(_TRIES, "search precision"):
        plan = plan_of(options, choose(options, 10 ** (-budget / 10)), cost)
        step = ApplyPrecision(plan, data)
        found = metric(PassManager([step], verify=False, progress=False).run(program).program)
        if not found >= wanted:
            break
        kept = plan
    if kept is None:
        raise PassError("no plan keeps the metric", expected=f"at least {wanted:g}", hint="allow a larger drop")
    return kept


def plan_of(options: dict[str, tuple[Option, ...]], chosen: dict[str, Option], cost: LayerCost) -> PrecisionPlan:
    """The plan that takes these options."""
    noise = sum(option.noise for option in chosen.values())
    floats = [option.cost for found in options.values() for option in found if option.precision is Precision.FLOAT32]
    notes = {name: f"{_decibels(option.noise):.1f} dB, {_amount(option.cost, cost)}" for name, option in chosen.items()}
    return PrecisionPlan(
        {name: chosen[name].precision for name in options},
        sqnr=_decibels(noise) if noise else None,
        cost=sum(option.cost for option in chosen.values()),
        float_cost=sum(floats) if len(floats) == len(options) else None,
        unit=cost.unit,
        notes=notes,
    )


def _amount(value: float, cost: LayerCost) -> str:
    return quantity(value, "B") if isinstance(cost, WeightBytes) else f"{value:.3g} {cost.unit}"


def _decibels(noise: float) -> float:
    return math.inf if noise == 0 else -10 * math.log10(noise)
