"""How far two sets of outputs, or two runs of a graph, are apart."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx

from tersor.ir.operators import OBSERVE
from tersor.ir.program import REPLACES, Program
from tersor.ir.shapes import KEY

from .full_float32 import full_float32

TOLERANCE = {torch.float64: 1e-9, torch.float32: 1e-4, torch.float16: 2e-2, torch.bfloat16: 1e-1}
"""What float rounding may do to an output, relative to its largest value, through some hundred layers."""


@dataclass(frozen=True)
class Difference:
    """A candidate against its reference, over all values of all tensors compared.

    max_abs: the largest absolute difference. relative: that over the reference's largest absolute value.
    sqnr: signal to quantization noise ratio in dB, 10 log10(sum ref^2 / sum (ref - candidate)^2); inf where equal.
    cosine: of the two as vectors. new_nonfinite: values that are finite in the reference and not in the candidate.
    """

    max_abs: float
    relative: float
    sqnr: float
    cosine: float
    new_nonfinite: int = 0

    def __str__(self) -> str:
        if self.max_abs == 0 and not self.new_nonfinite:
            return "equal"
        bad = f", {self.new_nonfinite} values became NaN or infinite" if self.new_nonfinite else ""
        return f"max |difference| {self.max_abs:.3g} ({self.relative:.2g} of the largest), SQNR {self.sqnr:.1f} dB{bad}"


def difference(reference: Sequence[Tensor], candidate: Sequence[Tensor]) -> Difference:
    """Compare tensors pairwise, in float64. The shapes have been seen to agree.

    Values that are not finite in the reference are left out.
    """
    max_abs = largest = signal = noise = dot = power = 0.0
    bad = 0
    for left, right in zip(reference, candidate, strict=True):
        a, b = left.detach().double().flatten(), right.detach().to(left.device).double().flatten()
        if not math.isfinite((a @ a + b @ b).item()):
            usable = torch.isfinite(a) & torch.isfinite(b)
            bad += int((torch.isfinite(a) & ~torch.isfinite(b)).sum())
            a, b = a[usable], b[usable]
        if not a.numel():
            continue
        error = a - b
        max_abs = max(max_abs, torch.linalg.vector_norm(error, math.inf).item())
        largest = max(largest, torch.linalg.vector_norm(a, math.inf).item())
        signal, noise = signal + (a @ a).item(), noise + (error @ error).item()
        dot, power = dot + (a @ b).item(), power + (b @ b).item()
    relative = max_abs / largest if largest else (0.0 if max_abs == 0 else math.inf)
    sqnr = math.inf if noise == 0 else 10 * math.log10(signal / noise) if signal else -math.inf
    norms = math.sqrt(signal * power)
    return Difference(max_abs, relative, sqnr, dot / norms if norms else float(signal == power), bad)


def sqnr(reference: Tensor, candidate: Tensor) -> float:
    """The SQNR in dB that `difference` gives, alone and faster: the difference is taken in float32 at least."""
    least = torch.promote_types(reference.dtype, torch.float32)
    exact = reference.detach().to(least)
    error = candidate.detach().to(least) - exact
    noise, signal = (torch.linalg.vector_norm(value, dtype=torch.float64).item() for value in (error, exact))
    if not math.isfinite(noise + signal):
        return difference([reference], [candidate]).sqnr
    if noise == 0:
        return math.inf
    return 20 * math.log10(signal / noise) if signal else -math.inf


def shape_mismatch(names: Sequence[str], reference: Sequence[Tensor], candidate: Sequence[Tensor]) -> str | None:
    """The first pair that differs in shape or dtype, in words; None where all agree."""
    if len(reference) != len(candidate):
        return f"{len(reference)} outputs became {len(candidate)}"
    for name, left, right in zip(names, reference, candidate, strict=True):
        if left.shape != right.shape or left.dtype != right.dtype:
            return f"{name}: {left.dtype} {tuple(left.shape)} became {right.dtype} {tuple(right.shape)}"
    return None


def within_rounding(reference: Sequence[Tensor], candidate: Sequence[Tensor], within: float = 0.0) -> bool:
    """Whether each tensor is the reference's up to float rounding; integers and booleans have to be equal.

    within: the least tolerance, where outputs of one dtype are computed from values of a coarser one.
    """
    return all(_close(left, right, within) for left, right in zip(reference, candidate, strict=True))


def coarsest(program: Program) -> float:
    """The tolerance of the coarsest dtype in which a program holds floats."""
    values = (node.meta.get(KEY) for node in program.graph.nodes)
    return max((TOLERANCE.get(value.dtype, 0.0) for value in values if isinstance(value, Tensor)), default=0.0)


def _close(left: Tensor, right: Tensor, within: float) -> bool:
    if left.shape != right.shape:
        return False
    if not left.is_floating_point():
        return torch.equal(left, right)
    found = difference([left], [right])
    return found.new_nonfinite == 0 and found.relative <= max(TOLERANCE.get(left.dtype, 1e-4), within)


class NodeRunner(fx.Interpreter):
    """Runs a graph node by node and shows each node's value to `visit`; frees values after their last use."""

    def __init__(self, program: Program, visit: Callable[[fx.Node, Any], None]) -> None:
        super().__init__(program.module)
        self.extra_traceback = False
        self.visit = visit

    def run_node(self, n: fx.Node) -> Any:
        """Run one node, then show it. An observer passes its input on, without the copy that an operator owes."""
        value = self.env[n.args[0]] if n.target is OBSERVE else super().run_node(n)  # type: ignore[index]
        self.visit(n, value)
        return value


def node_values(program: Program, inputs: Sequence[Tensor], visit: Callable[[fx.Node, Any], None]) -> None:
    """Run the program on flat inputs from any device, without gradients; `visit(node, value)` follows each node."""
    with torch.no_grad(), full_float32(program.device):
        there = [tensor.to(program.device) for tensor in inputs]
        NodeRunner(program, visit).run(*there, enable_io_processing=False)


@dataclass(frozen=True)
class _Trait:
    """What is remembered of a node's value: little, since all nodes of both graphs are recorded."""

    shape: tuple[int, ...]
    total: float
    absmax: float
    dtype: torch.dtype

    def differs(self, other: _Trait) -> bool:
        """Whether the two are apart by more than rounding."""
        if self.shape != other.shape:
            return True
        scale = max(self.absmax, 1e-30)
        slack = TOLERANCE.get(self.dtype, 1e-9)
        count = max(1, math.prod(self.shape))
        apart = abs(self.absmax - other.absmax) > slack * scale or abs(self.total - other.total) > slack * scale * count
        return apart or math.isnan(self.absmax) != math.isnan(other.absmax)


def first_difference(before: Program, after: Program, inputs: Sequence[Tensor]) -> fx.Node | None:
    """The first node of `after` whose value is not that of the node in `before` that it stands for.

    That is the one that it replaces, the last of several that replace it, else the one of the same name. Where nothing
    of the kind differs, the first new node; None where there is none.
    """
    reference = _traits(before, inputs)
    candidate = _traits(after, inputs)
    nodes: list[fx.Node] = list(after.graph.nodes)
    stands_for = {node: name for node in nodes for name in _originals(node) if name in reference}
    last = {name: node for node, name in stands_for.items()}
    for node, name in stands_for.items():
        if last[name] is node and node.name in candidate and candidate[node.name].differs(reference[name]):
            return node
    return next((node for node in nodes if REPLACES in node.meta and node.name not in reference), None)


def _originals(node: fx.Node) -> tuple[str, ...]:
    """The names under which a node's value may have stood before a pass; the last that did is the one."""
    return node.name, str(node.meta.get(REPLACES, node.name))


def _traits(program: Program, inputs: Sequence[Tensor]) -> dict[str, _Trait]:
    traits: dict[str, _Trait] = {}

    def visit(node: fx.Node, value: Any) -> None:
        if isinstance(value, Tensor) and node.op == "call_function":
            numbers = value.detach().double()
            absmax = numbers.abs().max().item() if numbers.numel() else 0.0
            traits[node.name] = _Trait(tuple(value.shape), numbers.sum().item(), absmax, value.dtype)

    node_values(program, inputs, visit)
    return traits
