"""Find the grids: ranges of activations from data, of weights from their values."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, fx

from tersor.ir.errors import CalibrationError, PassError
from tersor.ir.operators import BIAS_LIMIT, FAKE_QUANTIZE, FAKE_QUANTIZE_BIAS, OBSERVE
from tersor.ir.program import Program
from tersor.ir.quantization import Observer, QuantType
from tersor.ir.shapes import KEY
from tersor.ir.stage import Stage

from ..base import Pass, PassResult, Promise
from ..compare import node_values
from ..processes import of_the_first, rank, world
from ..progress import track
from .calibration_data import length, required
from .finite import refuse_unfinite
from .observers import Range, Statistics, grid, pair_safe_scales, weight_scales
from .output_range import Readers, readers_of
from .roles import WEIGHTS, Role, WeightLayout, clamp_range, operands, role_of
from .tables import parts_of, table_of


@dataclass(frozen=True)
class Calibrate(Pass):
    """Run data through the observers, then turn each into fake-quantize with the scale and zero point it found.

    Under torchrun every process is given the same data and runs its part of it; what they saw is put together.
    Of an embedding the whole table is taken, each row once, whatever tokens the data has.
    Biases of quantized operators become `fake_quantize_bias` on the accumulator's grid. The data is read once; memory
    does not grow with the number of batches.

    batches: what the model is called with, over and over: a tensor, a tuple of positional or a dict of keyword inputs.
        None where only weights are observed.
    observer: how activation ranges are read from the data.
    weight_observer: MIN_MAX or MSE, per channel. None takes MSE for weights of linears of at most 4 bits, where it
        gains 1 to 2 dB after GPTQ, and MIN_MAX for all others, where it does not.
    convolutions: with OUTPUT, judge ranges that convolutions read by their outputs too, which takes far longer, instead
        of by MSE.
    percentile: for PERCENTILE, the share of values, in percent, that a range holds.
    pair_safe: raise weight scales until no two neighbouring weights sum to more than 128 (see `pair_safe_scales`).

    Raises CalibrationError where data is missing, empty, does not fit the program, or holds NaN or infinity (with the
    node where it first appears); PassError where there is nothing to calibrate.
    """

    takes: ClassVar[frozenset[Stage]] = frozenset({Stage.FAKE_QUANT})
    promise: ClassVar[Promise] = Promise.APPROXIMATE

    batches: Iterable[Any] | None = None
    observer: Observer = Observer.MSE
    weight_observer: Observer | None = None
    percentile: float = 99.99
    pair_safe: bool = False
    convolutions: bool = False

    def __post_init__(self) -> None:
        if not 50 < self.percentile <= 100:
            raise PassError("percentile is in percent, over 50", found=self.percentile)

    def run(self, program: Program) -> PassResult:
        """Calibrate every observer."""
        observers = program.graph.find_nodes(op="call_function", target=OBSERVE)
        if not observers:
            raise PassError("there is nothing to calibrate", hint="run InsertFakeQuant before, or Quantize for both")
        computed = {node.args[1] for node in observers if program.constant(node.args[0]) is None}
        activations = [node for node in observers if node.args[1] in computed]
        constants = [node for node in observers if node.args[1] not in computed]
        grids: dict[str, tuple[str, str]] = {}
        found = {node: self._constant_grid(program, node) for node in constants}
        statistics, batches = self._collect(program, activations) if activations else ({}, 0)
        found |= {node: self._activation_grid(statistics, node) for node in activations}
        for node in observers:
            self._place(program, node, grids, found[node])
        biases = _quantize_biases(program)
        notes = (f"{batches} batches, {self.observer.value}" if activations else "weights only",)
        return PassResult(program, True, (*notes, f"{len(grids)} grids, {biases} biases"))

    def _collect(self, program: Program, nodes: list[fx.Node]) -> tuple[dict[str, _Seen], int]:
        seen = self._observed(program, nodes)
        masked = {node for node in nodes if feeds_softmax(node)}
        wanted = {node for node in nodes if table_of(program, node.args[0]) is None}
        failed: list[CalibrationError] = []

        def visit(node: fx.Node, value: Any) -> None:
            if node in wanted and not failed:
                try:
                    seen[str(node.args[1])].add(without_hidden(value) if node in masked else value)
                except CalibrationError as error:
                    failed.append(CalibrationError(error.what, node=node.args[0], found=error.found))  # type: ignore[arg-type]

        count = 0
        for inputs in track(required(program, self.batches), "calibrate", length(self.batches or ())):
            if count % world() == rank():
                node_values(program, inputs, visit)
            if failed:
                failed[0].what = f"calibration batch {count}"
                raise refuse_unfinite(program, inputs, failed[0])
            count += 1
        for one in seen.values():
            one.statistics.reduce()
        return seen, count

    def _observed(self, program: Program, nodes: list[fx.Node]) -> dict[str, _Seen]:
        """What will be remembered of each group. A group of several values is judged by its values alone."""
        groups: dict[str, list[fx.Node]] = {}
        for node in nodes:
            groups.setdefault(str(node.args[1]), []).append(node)
        return {group: self._beginning(program, members) for group, members in groups.items()}

    def _beginning(self, program: Program, members: list[fx.Node]) -> _Seen:
        """A group before any data: of embeddings it is known already, as every row of their tables may occur."""
        found = [table_of(program, node.args[0]) for node in members]
        tables = {id(table): table for table in found if table is not None}
        moving = tables and self.observer is Observer.MOVING_AVERAGE  # a table does not change from batch to batch
        statistics = Statistics(Observer.MIN_MAX if moving else self.observer)
        for table in tables.values() if rank() == 0 else ():
            for part in parts_of(table):
                statistics.add(part)
        by_output = self.observer is Observer.OUTPUT and len(members) == 1 and not tables
        return _Seen(statistics, readers_of(program, members[0], self.convolutions) if by_output else None)

    def _activation_grid(self, seen: dict[str, _Seen], node: fx.Node) -> tuple[Tensor, Tensor]:
        source, group, _, quant_min, quant_max, symmetric = node.args
        kind = _quant_type(int(quant_min), int(quant_max), bool(symmetric))  # type: ignore[arg-type]
        assert isinstance(source, fx.Node)
        try:
            span = seen[str(group)].range(kind, self.percentile)
        except CalibrationError as error:
            raise CalibrationError(error.what, node=source, found=error.found, hint=error.hint) from None
        scale, zero_point = grid(span, kind)
        scale = _within_clamp(source, scale, zero_point, span, kind)
        return torch.tensor(scale), torch.tensor(zero_point, dtype=torch.int32)

    def _constant_grid(self, program: Program, node: fx.Node) -> tuple[Tensor, Tensor]:
        source, _, axis, quant_min, quant_max, symmetric = node.args
        kind = _quant_type(int(quant_min), int(quant_max), bool(symmetric))  # type: ignore[arg-type]
        tensor = program.constant(source)
        assert tensor is not None
        tensor = tensor.detach().cpu()  # so that a weight has the same scales wherever it is
        try:
            if kind.symmetric:
                observer = self.weight_observer or _observer_of_weight(node, kind)
                scale = weight_scales(tensor, axis, kind, observer)  # type: ignore[arg-type]
                if self.pair_safe and kind.bits == 8:
                    scale = pair_safe_scales(tensor, scale, axis)  # type: ignore[arg-type]
                return scale, torch.zeros(scale.shape, dtype=torch.int32)
            statistics = Statistics(Observer.MIN_MAX)
            statistics.add(tensor)
        except CalibrationError as error:
            raise CalibrationError(error.what, node=node, found=error.found) from None
        scalar, zero_point = grid(statistics.range(kind, 100.0), kind)
        return torch.tensor(scalar), torch.tensor(zero_point, dtype=torch.int32)

    def _place(
        self, program: Program, node: fx.Node, grids: dict[str, tuple[str, str]], found: tuple[Tensor, Tensor]
    ) -> None:
        """Replace an observer by fake-quantize; observers of one group share scale and zero point."""
        source, group, axis, quant_min, quant_max, _ = node.args
        if group not in grids:
            scale, zero_point = found
            name = f"quantization.{str(group).replace('.', '_')}"
            grids[str(group)] = (
                program.add_tensor(f"{name}.scale", scale), program.add_tensor(f"{name}.zero_point", zero_point)
            )  # fmt: skip
        with program.graph.inserting_before(node):
            parameters = [program.attribute(tensor) for tensor in grids[str(group)]]
            assert isinstance(source, fx.Node)
            arguments = (source, *parameters, axis, quant_min, quant_max)
            name = node.name.replace("_observed", "_quantized")
            new = program.call(FAKE_QUANTIZE, arguments, like=source, name=name)
        program.replace(node, new)


def _observer_of_weight(node: fx.Node, kind: QuantType) -> Observer:
    linear = all(user.target is torch.ops.aten.linear.default for user in node.users)
    return Observer.MSE if linear and kind.bits <= 4 else Observer.MIN_MAX


@dataclass
class _Seen:
    """What is remembered of a group of values: their distribution and, where layers alone read them, a sample."""

    statistics: Statistics
    readers: Readers | None

    def add(self, value: Tensor) -> None:
        self.statistics.add(value)
        if self.readers is not None:
            self.readers.add(value)

    def range(self, kind: QuantType, percentile: float) -> Range:
        if self.readers is None:
            return self.statistics.range(kind, percentile)
        # The sample is this process's own, and all have to choose alike.
        if rank():
            low, high = of_the_first(torch.zeros(2, dtype=torch.float64)).tolist()
            return Range(low, high)
        chosen = self.readers.choose(self.statistics.extremes(), kind)
        of_the_first(torch.tensor([chosen.low, chosen.high], dtype=torch.float64))
        return chosen


_HIDDEN_BELOW = 32.0
"""exp(-32) is below the rounding of a softmax in float32."""


def feeds_softmax(observer: fx.Node) -> bool:
    """Whether all that reads an observed value is a softmax over its last dimension."""
    users = list(observer.users)
    last = observer.meta[KEY].dim() - 1
    return bool(users) and all(u.target is torch.ops.aten.softmax.int and u.args[1] in (-1, last) for u in users)


def without_hidden(scores: Tensor) -> Tensor:
    """The scores that a softmax gives any weight: those far below the largest of their row are masked, as by -1e4."""
    return scores[scores >= scores.amax(-1, keepdim=True) - _HIDDEN_BELOW]


def _quant_type(quant_min: int, quant_max: int, symmetric: bool) -> QuantType:
    return QuantType((quant_max + 1).bit_length(), symmetric)


def _within_clamp(source: fx.Node, scale: float, zero_point: int, span: Range, kind: QuantType) -> float:
    """The scale, nudged so that the grid does not reach past a clamp before it, which then costs nothing."""
    if source.op != "call_function" or kind.symmetric or span.high <= 0:
        return scale
    _, high = clamp_range(source) if source.target in _CLAMPS else (0.0, float("inf"))
    if span.high < high * (1 - 1e-3):
        return scale
    steps = kind.qmax - zero_point
    value = torch.tensor(min(scale, high / steps) if steps else scale, dtype=torch.float32)
    while steps * value.item() > high:
        value = torch.nextafter(value, torch.tensor(0.0))
    return value.item()


_CLAMPS = (torch.ops.aten.hardtanh.default, torch.ops.aten.clamp.default, torch.ops.aten.relu6.default)


def _quantize_biases(program: Program) -> int:
    """Put each bias of a quantized operator on the grid of its accumulator; returns how many."""
    count = 0
    for node in list(program.graph.nodes):
        layout = WEIGHTS.get(node.target)
        if layout is None or len(node.args) <= layout.bias or not _is_quantized(node.args[layout.weight]):
            continue
        if program.constant(node.args[layout.bias]) is not None:
            quantize_bias_of(program, node, layout)
            count += 1
    return count


def quantize_bias_of(program: Program, node: fx.Node, layout: WeightLayout) -> Tensor:
    """Put the bias of one quantized operator on its accumulator's grid; returns the values that it then has.

    The weight's scale is raised where the bias would overflow int32.
    """
    weight, bias = node.args[layout.weight], node.args[layout.bias]
    input_scale, tensor = scale_behind(program, node.args[0]), program.constant(bias)
    assert tensor is not None
    assert isinstance(weight, fx.Node)
    assert isinstance(weight.args[1], fx.Node)
    if input_scale is None:
        return tensor
    names = str(input_scale.target), str(weight.args[1].target)
    _make_room(program, names[1], program.tensor(names[0]), tensor)
    with program.graph.inserting_before(node):
        scales = [program.attribute(name) for name in names]
        new = program.call(FAKE_QUANTIZE_BIAS, (bias, *scales), like=node, name=f"{node.name}_bias")
    node.update_arg(layout.bias, new)
    quantized: Tensor = FAKE_QUANTIZE_BIAS(tensor, *(program.tensor(name) for name in names))
    return quantized.detach()


def _is_quantized(node: object) -> bool:
    return isinstance(node, fx.Node) and node.target is FAKE_QUANTIZE


def grid_behind(program: Program, value: Any) -> fx.Node | None:
    """The fake-quantize that put a value on its grid, seen through moves."""
    while isinstance(value, fx.Node) and value.target is not FAKE_QUANTIZE:
        role = role_of(program, value)
        if role not in (Role.MOVE, Role.JOIN):
            return None
        value = operands(program, value)[0]
    return value if isinstance(value, fx.Node) else None


def scale_behind(program: Program, value: Any) -> fx.Node | None:
    """The scale of the grid that a value is on, seen through moves."""
    found = grid_behind(program, value)
    return None if found is None else found.args[1]  # type: ignore[return-value]  # a fake-quantize has a node there


def _make_room(program: Program, weight_scale: str, input_scale: Tensor, bias: Tensor) -> None:
    """A tiny weight beside a large bias would overflow int32: a coarser weight scale costs less than a wrong bias."""
    scale = program.tensor(weight_scale)
    needed = bias.detach().abs().float() / (input_scale * BIAS_LIMIT * 0.999)
    needed = needed if scale.dim() else needed.max()
    if bool((needed > scale).any()):
        program.set_tensor(weight_scale, torch.maximum(scale, needed))
