"""Bias correction: take the mean error of each quantized operator out through its bias, by data or by batch norms."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, fx, nn

from tersor.ir.errors import PassError
from tersor.ir.operators import FAKE_QUANTIZE, FAKE_QUANTIZE_BIAS, along
from tersor.ir.program import Program
from tersor.ir.shapes import KEY
from tersor.ir.stage import Stage

from ..base import Pass, PassResult, Promise
from ..progress import track
from .calibrate import quantize_bias_of
from .calibration_data import required
from .roles import WEIGHTS, WeightLayout

Values = list[Any]
"""One value for each batch."""

_SCALING = {"equalize_layers", "smooth_quant", "awq"}
"""Passes that move factors between layers."""


@dataclass(frozen=True)
class CorrectBias(Pass):
    """Shift each bias so that a quantized operator's output has the float one's mean in every channel.

    Rounding a weight moves the mean of what is computed with it; over a layer's many products that shift is most of the
    error. It is measured on data, with everything before the operator quantized and corrected already, and subtracted:
    Nagel et al. 2019 (arXiv:1906.04721), section 4.2, applied in order as in its appendix.

    batches: as for `Calibrate`; the first `count` are held in memory together, so a few small ones are right.
    expected: instead of data, what each layer reads on average, as `expected_inputs` finds it from batch norms. The
        mean error is then (Wq - W) E[x], in closed form (section 4.2.1 of that paper); what rounding activations does
        to the mean is not seen. Layers that it does not name are left alone. Channels must not have been scaled since:
        no equalization, no smoothing.

    Raises CalibrationError where data is missing or empty, PassError where channels were scaled
    and `expected` is given.
    """

    takes: ClassVar[frozenset[Stage]] = frozenset({Stage.FAKE_QUANT})
    promise: ClassVar[Promise] = Promise.APPROXIMATE

    batches: Iterable[Any] | None = None
    count: int = 4
    expected: Mapping[str, Tensor] | None = None

    def run(self, program: Program) -> PassResult:
        """Correct every operator in graph order."""
        if self.expected is not None:
            _refuse_scaled(program)
            with torch.no_grad():
                known = _corrected_by_expectation(program, self.expected)
            return PassResult(program, bool(known), (f"{known} biases from batch norms, without data",))
        inputs = list(required(program, self.batches, self.count))
        with torch.no_grad():
            corrected = _Walk(program, inputs).run()
        return PassResult(program, bool(corrected), (f"{corrected} biases on {len(inputs)} batches",))


class _Walk:
    """The float and the quantized program side by side, node by node, over all batches.

    The float one is the same graph with every fake-quantize left out.
    """

    def __init__(self, program: Program, inputs: list[list[Tensor]]) -> None:
        self.program = program
        self.exact: dict[fx.Node, Values] = {}
        self.rounded: dict[fx.Node, Values] = {}
        self.fixed: set[fx.Node] = set()
        for place, node in enumerate(program.placeholders):
            self.exact[node] = self.rounded[node] = [batch[place] for batch in inputs]
        self.batches = len(inputs)

    def run(self) -> int:
        last = _last_uses(self.program.graph)
        corrected = 0
        for node in track(list(self.program.graph.nodes), "correct biases"):
            if node.op == "get_attr":
                tensor = self.program.tensor(str(node.target))
                self.exact[node] = self.rounded[node] = [tensor] * self.batches
                self.fixed.add(node)
            elif node.op == "call_function":
                self._evaluate(node)
                corrected += self._correct(node)
            for dead in last.get(node, ()):
                self.exact.pop(dead, None)
                self.rounded.pop(dead, None)
        return corrected

    def _evaluate(self, node: fx.Node) -> None:
        self.rounded[node] = self._call(node, self.rounded)
        if node.target in (FAKE_QUANTIZE, FAKE_QUANTIZE_BIAS):
            self.exact[node] = self.exact[node.args[0]]  # type: ignore[index]
        elif all(self.exact[n] is self.rounded[n] for n in node.all_input_nodes):
            self.exact[node] = self.rounded[node]
        else:
            self.exact[node] = self._call(node, self.exact)

    def _call(self, node: fx.Node, values: dict[fx.Node, Values]) -> Values:
        """The node's value for each batch; computed once where it depends on parameters alone."""
        fixed = all(source in self.fixed for source in node.all_input_nodes)
        results = [_call(node, values, batch) for batch in range(1 if fixed else self.batches)]
        if fixed:
            self.fixed.add(node)
        return results * self.batches if fixed else results

    def _correct(self, node: fx.Node) -> bool:
        layout = WEIGHTS.get(node.target)
        if layout is None or not _is_quantized(node.args[layout.weight]):
            return False
        rank, weight = (value.meta[KEY].dim() for value in (node, node.args[layout.weight]))  # type: ignore[union-attr]
        axis = rank - weight + 1  # a filter has the dimensions of its result, but for the batch
        pairs = zip(self.exact[node], self.rounded[node], strict=True)
        shift = _channel_mean([exact - rounded for exact, rounded in pairs], axis).to(node.meta[KEY].dtype)
        applied = _apply(self.program, node, layout, shift)
        self.rounded[node] = [value + along(applied, axis, rank) for value in self.rounded[node]]
        return True


def _apply(program: Program, node: fx.Node, layout: WeightLayout, shift: Tensor) -> Tensor:
    """Add the shift to the bias; returns what that changed after the bias was put on its grid."""
    read = node.args[layout.bias] if len(node.args) > layout.bias else None
    if not isinstance(read, fx.Node):
        name = program.add_tensor(f"{node.name}_bias", nn.Parameter(shift))
        with program.graph.inserting_before(node):
            bias = program.attribute(name)
        node.args = (*node.args[: layout.bias], bias, *node.args[layout.bias + 1 :])
        return quantize_bias_of(program, node, layout)
    source = read.args[0] if read.target is FAKE_QUANTIZE_BIAS else read
    assert isinstance(source, fx.Node)
    # The tensor may serve other operators too, each of which has a shift of its own.
    old = program.tensor(str(source.target))
    name = program.add_tensor(f"{source.target}_corrected", nn.Parameter(old.detach() + shift))
    with program.graph.inserting_before(read if read is not source else node):
        bias = program.attribute(name)
    if read is source:
        node.update_arg(layout.bias, bias)
        return shift
    read.update_arg(0, bias)
    scales = [program.tensor(str(argument.target)) for argument in read.args[1:]]  # type: ignore[union-attr]
    changed: Tensor = FAKE_QUANTIZE_BIAS(program.tensor(name), *scales) - FAKE_QUANTIZE_BIAS(old, *scales)
    return changed.detach()


def _refuse_scaled(program: Program) -> None:
    """What a layer reads is no longer what its batch norm said, once factors moved between layers."""
    scaled = [entry.name for entry in program.history if entry.name in _SCALING and entry.modified]
    if scaled:
        raise PassError(
            "batch norms no longer say what layers read",
            expected="channels as they were when `expected` was found",
            found=f"scaled by {scaled[0]}",
            hint="Quantize(equalize=False, smooth=False), or correct with data",
        )


def _corrected_by_expectation(program: Program, expected: Mapping[str, Tensor]) -> int:
    """Shift the biases of the layers that `expected` names by -(Wq - W) E[x]; returns how many."""
    corrected = 0
    for node in list(program.graph.nodes):
        layout = WEIGHTS.get(node.target)
        if layout is None or node.name not in expected or not _is_quantized(node.args[layout.weight]):
            continue
        quantizer = node.args[layout.weight]
        weight, *grid = (program.constant(argument) for argument in quantizer.args[:3])
        assert weight is not None
        error = (FAKE_QUANTIZE(weight, *grid, *quantizer.args[3:]) - weight).detach()
        mean = expected[node.name]
        groups = mean.numel() // weight.shape[1]
        summed = error.flatten(2).sum(2) if error.dim() > 2 else error
        means = mean.reshape(groups, -1).repeat_interleave(weight.shape[0] // groups, 0)
        _apply(program, node, layout, -(summed * means).sum(1))
        corrected += 1
    return corrected


def _channel_mean(errors: list[Tensor], axis: int) -> Tensor:
    """The mean over all batches and all dimensions but `axis`, float32[channels]."""
    rows = [error.movedim(axis, 0).reshape(error.shape[axis], -1) for error in errors]
    return sum((row.double().sum(1) for row in rows), torch.zeros(())).float() / sum(row.shape[1] for row in rows)


def _is_quantized(argument: object) -> bool:
    return isinstance(argument, fx.Node) and argument.target is FAKE_QUANTIZE


def _call(node: fx.Node, values: dict[fx.Node, Values], batch: int) -> Any:
    args, kwargs = fx.node.map_arg((node.args, node.kwargs), lambda n: values[n][batch])
    assert callable(node.target)
    return node.target(*args, **kwargs)


def _last_uses(graph: fx.Graph) -> dict[fx.Node, list[fx.Node]]:
    """The nodes whose values no node after the key reads."""
    last: dict[fx.Node, list[fx.Node]] = {}
    seen: set[fx.Node] = set()
    for node in reversed(graph.nodes):
        for source in node.all_input_nodes:
            if source not in seen:
                seen.add(source)
                last.setdefault(node, []).append(source)
    return last
