"""Learn whether each weight is rounded up or down."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, fx, nn

from tersor.ir.errors import PassError
from tersor.ir.program import Program
from tersor.ir.stage import Stage

from ..base import Pass, PassResult, Promise
from ..compare import node_values
from ..progress import track
from ..training.loop import fit
from ..training.options import Optimizer, Schedule, Training
from ..training.task import Group, Task
from .calibration_data import first_batches, required
from .gptq import groups_of
from .injection import Injection
from .rounding_units import Scope, Unit, units
from .weight_grid import WeightGrid, quantized_layers

TRAINING = Training(steps=300, optimizer=Optimizer.ADAM, learning_rate=2e-2, schedule=Schedule.CONSTANT, progress=False)
_STRETCH, _SHIFT = 1.2, -0.1
_WARMUP = 0.2
_SHARPNESS = (20.0, 2.0)


@dataclass(frozen=True)
class LearnRounding(Pass):
    """Choose for each weight, up or down, so that what a layer or a block gives stays what it is in float.

    Each weight gets a variable h in [0, 1] between its two neighbours on the grid. The squared error of the output is
    minimized over all of them, with a term that pushes every h to 0 or 1 ever harder: AdaRound, Nagel et al. 2020
    (arXiv:2004.10568), with the rectified sigmoid of its section 3.2. What is reconstructed is each layer's output, or
    that of a whole block, which lets layers make up for each other: BRECQ, Li et al. 2021 (arXiv:2102.05426). Inputs
    are those of the quantized program as it is by then, targets those of float. A unit keeps rounding to the nearest
    where that was better.

    batches: as for `Calibrate`; the first `count` are held in memory, with what the unit at hand reads and gives.
    scope: what is reconstructed at a time. training: the options of the optimizer loop, for each unit.
    strength: of the term that pushes to 0 or 1, beside an error that is 1 for rounding to the nearest.
    bits: only weights of at most so many.

    Run it in place of `GPTQ`, not after: it starts from weights that are not rounded yet.

    Raises CalibrationError where data is missing or empty, MissingDependencyError without `tersor[training]`.
    """

    takes: ClassVar[frozenset[Stage]] = frozenset({Stage.FAKE_QUANT})
    promise: ClassVar[Promise] = Promise.APPROXIMATE

    batches: Iterable[Any] | None = None
    count: int = 8
    scope: Scope = Scope.BLOCK
    training: Training = TRAINING
    strength: float = 0.3
    bits: int = 8

    def __post_init__(self) -> None:
        if self.count < 1 or self.strength <= 0:
            raise PassError("count and strength are positive", found=(self.count, self.strength))

    def run(self, program: Program) -> PassResult:
        """Learn unit by unit, in graph order."""
        layers = [
            layer
            for layer in quantized_layers(program)
            if (int(layer.quantizer.args[-1]) + 1).bit_length() <= self.bits and groups_of(layer.node) == 1  # type: ignore[arg-type]
        ]
        if not layers:
            return PassResult(program, False, ("no weights to round",))
        inputs = list(required(program, None if self.batches is None else first_batches(self.batches, self.count)))
        exact = [Injection(program, batch) for batch in inputs]
        found = units(program, layers, self.scope)
        before = after = 0.0
        learned = 0
        for unit in track(found, "learn rounding"):
            targets = [injection.values[unit.output] for injection in exact]
            task = _Rounding(program, unit, _given(program, unit, inputs), targets, self.strength)
            nearest = task.error()
            fit(task, task.batches(), self.training)
            hard = task.error()
            before, after = before + nearest, after + min(hard, nearest)
            if hard < nearest:
                task.write()
                learned += len(unit.layers)
        gain = f"; error of the {self.scope.value}s down to {after / before:.0%}" if before else ""
        return PassResult(program, bool(learned), (f"{learned} of {len(layers)} weights in {len(found)} units{gain}",))


def _given(program: Program, unit: Unit, inputs: list[list[Tensor]]) -> list[dict[fx.Node, Any]]:
    """What the unit reads in the quantized program as it is now, for each batch."""
    wanted = set(unit.inputs)
    found: list[dict[fx.Node, Any]] = []
    for batch in inputs:
        values: dict[fx.Node, Any] = {}

        def visit(node: fx.Node, value: Any, into: dict[fx.Node, Any] = values) -> None:
            if node in wanted:
                into[node] = value

        node_values(program, batch, visit)
        found.append(values)
    return found


class _Rounding(Task):
    """The variables of one unit, and the error of what it gives."""

    what = "learn rounding"

    def __init__(
        self,
        program: Program,
        unit: Unit,
        given: list[dict[fx.Node, Any]],
        targets: list[Tensor],
        strength: float,
    ) -> None:
        self.program, self.unit, self.strength = program, unit, strength
        self.stays_on = program.device
        self.given, self.targets = given, [target.detach().float() for target in targets]
        self.grids = {layer.quantizer: WeightGrid.of(program, layer.quantizer) for layer in unit.layers}
        self.below = {node: torch.floor(grid.weight / grid.scale) for node, grid in self.grids.items()}
        self.variables = {node: nn.Parameter(self._start(node)) for node in self.grids}
        self.names = {node: f"rounding.{index}" for index, node in enumerate(self.grids)}
        self.scale = max(self.error(), 1e-30)

    def _start(self, node: fx.Node) -> Tensor:
        """The variable whose h is where the weight lies between its neighbours."""
        grid = self.grids[node]
        part = grid.weight / grid.scale - self.below[node]
        return -torch.log(_STRETCH / (part.clamp(1e-4, 1 - 1e-4) - _SHIFT) - 1)

    def batches(self) -> list[int]:
        """The places of the batches that are held."""
        return list(range(len(self.targets)))

    def groups(self) -> list[Group]:
        return [Group({self.names[node]: variable for node, variable in self.variables.items()}, decay=False)]

    def state(self) -> dict[str, Tensor]:
        return {self.names[node]: variable for node, variable in self.variables.items()}

    def loss(self, batch: Any, share: float) -> Tensor:
        weights = {node: self._weight(node, _part(variable)) for node, variable in self.variables.items()}
        found = self.unit.run(self.program, self.given[batch], weights)
        error: Tensor = (found.float() - self.targets[batch]).square().mean() / self.scale
        if share < _WARMUP:
            return error
        done = (share - _WARMUP) / (1 - _WARMUP)
        sharpness = _SHARPNESS[0] + (_SHARPNESS[1] - _SHARPNESS[0]) * done
        undecided = [1 - (2 * _part(v) - 1).abs().pow(sharpness) for v in self.variables.values()]
        count = sum(values.numel() for values in undecided)
        return error + self.strength * torch.stack([values.sum() for values in undecided]).sum() / count

    def error(self) -> float:
        """The mean squared error with every weight on its grid: where the variables say, the nearest at first."""
        weights = {node: self.hard(node) for node in self.grids}
        total = 0.0
        with torch.no_grad():
            for given, target in zip(self.given, self.targets, strict=True):
                found = self.unit.run(self.program, given, weights)
                total += float((found.float() - target).square().mean())
        return total / len(self.targets)

    def hard(self, node: fx.Node) -> Tensor:
        """The weight, each value rounded to the side that its variable is on."""
        return self._weight(node, (_part(self.variables[node].detach()) >= 0.5).float())

    def write(self) -> None:
        """Put the rounded weights into the program."""
        for layer in self.unit.layers:
            old = self.program.tensor(layer.weight)
            self.program.set_tensor(layer.weight, self.hard(layer.quantizer).to(old.dtype))

    def _weight(self, node: fx.Node, part: Tensor) -> Tensor:
        grid = self.grids[node]
        zero = grid.zero_point
        steps = (self.below[node] + part + zero).clamp(grid.quant_min, grid.quant_max) - zero
        shape = self.program.constant(node.args[0]).shape  # type: ignore[union-attr]  # a weight is a constant
        values = steps * grid.scale
        return (values if grid.zeros is None else values.masked_fill(grid.zeros, 0.0)).reshape(shape)


def _part(variable: Tensor) -> Tensor:
    """h: a sigmoid that is stretched a little and cut off, so that it reaches 0 and 1."""
    return (torch.sigmoid(variable) * _STRETCH + _SHIFT).clamp(0, 1)
