"""Weight scales that make requantization an integer product and a shift."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import ClassVar

import torch
from torch import Tensor, fx

from tersor.ir.accumulators import INT32_LIMIT
from tersor.ir.errors import PassError
from tersor.ir.integer_stage import is_lowered
from tersor.ir.operators import BIAS_LIMIT, FAKE_QUANTIZE, FAKE_QUANTIZE_BIAS, along, bias_scale, quantize_to_grid
from tersor.ir.program import Program
from tersor.ir.proofs import Requantization
from tersor.ir.requantize_forms import MANTISSA_BITS, MultiplyShiftEven, bit_length
from tersor.ir.stage import Stage

from ..base import Pass, PassResult, Promise, on_the_cpu
from ..progress import track
from .calibrate import grid_behind
from .integer_grid import IntegerGrid
from .observers import pair_safe_scales
from .roles import WEIGHTS, Role, role_of

_BELOW = torch.arange(0, -6, -1)
_ABOVE = torch.arange(1, 9)
"""Mantissas below and above the multiplier, the nearest first. Four of five have a scale that gives them exactly."""
_ULPS = torch.arange(-8, 9, dtype=torch.int32)


@dataclass(frozen=True)
class SnapScales(Pass):
    """Move each weight scale a little, so that the multiplier of its channel has a short mantissa.

    Requantization multiplies an accumulator by m = sx * sw / sy in float32. Where m is M * 2**-s with so few bits in M
    that acc * M fits the 24 bits of a float32, nothing is rounded on the way, and `acc * M >> s`, rounded half to even,
    is the same on every target: an FPGA needs a multiplier of 4 to 9 bits and no floating point. Wherever the product
    would be longer, the result is clamped anyway. Each channel is proven on all its thresholds. With m at 2**-8 there
    is room for 8 or 9 bits, and a scale moves by 0.4 % at most; at 2**-12 for 4 or 5.

    Of the mantissas next to the multiplier, the one with the least squared error of the weight is taken. Weights that
    are safe for kernels without VNNI stay so (see `Calibrate.pair_safe`). Run it after `Calibrate` and before
    `CorrectBias`, or at the end. What has no output grid, or shares a weight, is left as it is and named.

    bits: the longest mantissa, where fewer bits than fit are wanted; None takes all that fit.
    """

    takes: ClassVar[frozenset[Stage]] = frozenset({Stage.FAKE_QUANT})
    promise: ClassVar[Promise] = Promise.APPROXIMATE

    bits: int | None = None

    def __post_init__(self) -> None:
        if self.bits is not None and not 1 <= self.bits <= MANTISSA_BITS:
            raise PassError("bits is the length of a mantissa", expected=f"1 to {MANTISSA_BITS}", found=self.bits)

    @on_the_cpu
    def run(self, program: Program) -> PassResult:
        """Snap every layer that requantizes its result."""
        tally = _Tally()
        for layer in track(_layers(program, tally), "snap scales"):
            self._snap(program, layer, tally)
        return PassResult(program, tally.snapped > 0, tally.notes())

    def _snap(self, program: Program, layer: _Layer, tally: _Tally) -> None:
        choice = layer.candidates(program, MANTISSA_BITS if self.bits is None else self.bits)
        weight, old = program.tensor(layer.weight).detach(), program.tensor(layer.scale).detach()
        before = layer.error(weight, old.reshape(-1))
        errors = [layer.error(weight, scale).where(right, torch.inf) for scale, right in choice]
        error, place = torch.stack(errors).min(0)
        scales = torch.stack([scale for scale, _ in choice]).gather(0, place.unsqueeze(0)).squeeze(0)
        found = torch.isfinite(error) & layer.is_proven(program, scales)
        program.set_tensor(layer.scale, scales.where(found, old.reshape(-1)).reshape(old.shape))
        tally.add(layer, found, weight.double().square().sum(), before.sum(), error.where(found, before).sum())


@dataclass
class _Tally:
    """What the notes say."""

    layers: int = 0
    snapped: int = 0
    channels: int = 0
    power: float = 0.0
    before: float = 0.0
    after: float = 0.0
    short: list[str] = field(default_factory=list)
    left: list[str] = field(default_factory=list)

    def add(self, layer: _Layer, found: Tensor, power: Tensor, before: Tensor, after: Tensor) -> None:
        self.layers += 1
        self.channels += found.numel()
        self.snapped += int(found.sum())
        self.power += float(power)
        self.before += float(before)
        self.after += float(after)
        if not bool(found.all()):
            self.short.append(f"{layer.node.name} ({int((~found).sum())})")

    def notes(self) -> tuple[str, ...]:
        notes = [f"{self.snapped} of {self.channels} channels of {self.layers} layers"]
        if self.before and self.after:
            sqnr = [10 * float(torch.log10(torch.tensor(self.power / noise))) for noise in (self.before, self.after)]
            notes.append(f"weight SQNR {sqnr[0]:.2f} to {sqnr[1]:.2f} dB")
        if self.short:
            notes.append(f"channels without a scale that fits: {', '.join(self.short)}")
        if self.left:
            notes.append(f"left: {', '.join(self.left)}")
        return tuple(notes)


@dataclass(frozen=True)
class _Layer:
    """A convolution or linear layer between grids. `weight`, `scale` and `bias` are names of tensors."""

    node: fx.Node
    input: IntegerGrid
    output: IntegerGrid
    weight: str
    scale: str
    axis: int | None
    quant_min: int
    quant_max: int
    bias: str | None

    def candidates(self, program: Program, most: int) -> list[tuple[Tensor, Tensor]]:
        """The nearest scales, below and above, that give a short mantissa: float32[channels], and where there is one.

        A mantissa has at most `most` bits.
        """
        sx, sy = self.input.step(program), self.output.step(program)
        sw = program.tensor(self.scale).detach().reshape(-1)
        multiplier = (bias_scale(sx, sw) / sy).double()
        bits = exact_bits(multiplier, self.output).clamp(max=most)
        fraction, exponent = torch.frexp(multiplier)
        nearest, shift = torch.floor(torch.ldexp(fraction, bits.double())), bits - exponent
        least = self._least(program, sx, sw)
        found = []
        for offsets in (_BELOW, _ABOVE):
            mantissas = nearest + offsets.unsqueeze(1)  # [mantissas, channels]
            wanted = torch.ldexp(mantissas, -shift.double()).float()
            scales, right = _scales_giving(wanted, sx, sy)
            right &= (mantissas >= 1) & (mantissas <= (1 << bits)) & (bits > 0) & (scales >= least)
            found.append(_first(scales, right))
        return found

    def _least(self, program: Program, sx: Tensor, sw: Tensor) -> Tensor:
        """No scale goes below what keeps pairs of weights safe, where they are, and the bias within int32."""
        weight = program.tensor(self.weight)
        axis = self.axis if program.tensor(self.scale).dim() else None
        zeros = torch.zeros_like(sw) if axis is not None else torch.zeros(())
        safe = pair_safe_scales(weight, zeros, axis).reshape(-1)
        least = torch.where(sw >= safe, safe, 0.0)
        if self.bias is None:
            return least
        needed = program.tensor(self.bias).detach().abs().float() / (sx * BIAS_LIMIT)
        return torch.maximum(least, needed if axis is not None else needed.max())

    def is_proven(self, program: Program, scales: Tensor) -> Tensor:
        """For which scales float32[channels] multiply and shift is the definition on every int32, bool[channels]."""
        multiplier = bias_scale(self.input.step(program), scales) / self.output.step(program)
        ends = torch.full(multiplier.shape, INT32_LIMIT - 1)
        grid = self.output.zero_point, self.output.quant_min, self.output.quant_max
        case = Requantization(multiplier, *grid, -ends, ends)
        return case.agrees(MultiplyShiftEven.of(case))

    def error(self, weight: Tensor, scale: Tensor) -> Tensor:
        """The squared error of the weight on scales float32[channels], float64[channels]."""
        axis = None if scale.numel() == 1 and self.axis is None else self.axis
        step = scale if axis is not None else scale.reshape(())
        stored = quantize_to_grid(weight, step, torch.tensor(0), axis, self.quant_min, self.quant_max)
        errors = (stored * along(step, axis, weight.dim()) - weight).double().square()
        return errors.sum().reshape(1) if axis is None else errors.movedim(axis, 0).flatten(1).sum(1)


def _scales_giving(multiplier: Tensor, sx: Tensor, sy: Tensor) -> tuple[Tensor, Tensor]:
    """Weight scales for which float32(float32(sx * sw) / sy) is the multiplier exactly, and where there is one."""
    near = (multiplier.double() * sy.double() / sx.double()).float().view(torch.int32)
    scales = (near + _ULPS.reshape(-1, 1, 1)).view(torch.float32)
    return _first(scales, bias_scale(sx, scales) / sy == multiplier)


def _first(values: Tensor, right: Tensor) -> tuple[Tensor, Tensor]:
    """Along the first dimension, the first value that is right, and whether there is one."""
    place = right.to(torch.int8).argmax(0, keepdim=True)
    return values.gather(0, place).squeeze(0), right.any(0)


def exact_bits(multiplier: Tensor, output: IntegerGrid) -> Tensor:
    """How long a mantissa may be so that no product that is not clamped is rounded in float32, int64[channels].

    A result within the grid takes accumulators up to A = (steps + 1/2) / m; A * M has to stay below 2**24.
    """
    reach = max(abs(output.quant_min - output.zero_point), abs(output.quant_max - output.zero_point))
    furthest = torch.ceil((reach + 1) / multiplier).clamp(max=float(1 << 40)).to(torch.int64)
    return (MANTISSA_BITS - torch.from_numpy(bit_length(furthest.numpy()))).clamp(min=0)


def _layers(program: Program, tally: _Tally) -> list[_Layer]:
    found = list(_every_layer(program, tally))
    shared = Counter(layer.scale for layer in found)
    tally.left += [f"{layer.node.name} (shares its weight)" for layer in found if shared[layer.scale] > 1]
    return [layer for layer in found if shared[layer.scale] == 1]


def _every_layer(program: Program, tally: _Tally) -> Iterator[_Layer]:
    for node in program.graph.nodes:
        layout = WEIGHTS.get(node.target)
        weight = None if layout is None else node.args[layout.weight]
        if layout is None or not isinstance(weight, fx.Node) or weight.target is not FAKE_QUANTIZE:
            continue
        source, result = _grid(program, grid_behind(program, node.args[0])), _grid(program, _result(program, node))
        if source is None or result is None or program.constant(weight.args[0]) is None:
            tally.left.append(f"{node.name} ({'gives floats' if source else 'takes floats'})")
            continue
        _, scale, _, axis, low, high = weight.args
        bias = node.args[layout.bias] if len(node.args) > layout.bias else None
        bias = bias.args[0] if isinstance(bias, fx.Node) and bias.target is FAKE_QUANTIZE_BIAS else bias
        name, step = (str(value.target) for value in (weight.args[0], scale))  # type: ignore[union-attr]  # tensors
        offset = str(bias.target) if isinstance(bias, fx.Node) and bias.op == "get_attr" else None
        yield _Layer(node, source, result, name, step, axis, low, high, offset)  # type: ignore[arg-type]  # by its schema


def _grid(program: Program, node: fx.Node | None) -> IntegerGrid | None:
    if node is None or node.target is not FAKE_QUANTIZE or node.args[3] is not None or not is_lowered(program, node):
        return None
    return IntegerGrid.of(program, node)


def _result(program: Program, node: fx.Node) -> fx.Node | None:
    """What quantizes a node's result, behind clamps and moves; None where it is not one node."""
    while len(node.users) == 1:
        (node,) = node.users
        if role_of(program, node) not in (Role.CLAMP, Role.MOVE):
            return node
    return None
