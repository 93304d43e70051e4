"""Ranges from data, in one pass and in memory that does not grow with it.

An activation is summarized by its extremes and a histogram whose width is a power of two: a wider batch doubles it, by
adding neighbouring bins exactly, so the result does not depend on the order of the batches.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from tersor.ir.errors import CalibrationError
from tersor.ir.quantization import Observer, QuantType

from ..processes import least, summed, world

BINS = 8192
_MASKED = 1e30
SMALLEST_SCALE = 2.0**-62
"""Less counts as zero: the product of two scales, on which accumulators stand, has to be a normal float32."""
_SHARES = [1 - 0.9 * step / 100 for step in range(100)]
_MOMENTUM = 0.1


@dataclass(frozen=True)
class Range:
    """The values that a grid has to hold, zero among them."""

    low: float
    high: float


class Statistics:
    """What is remembered of a value over all batches.

    Values at or beyond +-1e30 are attention masks and not data; they are left out.
    """

    def __init__(self, observer: Observer) -> None:
        self.observer = observer
        self.low, self.high = math.inf, -math.inf
        self.limit = 0.0
        self.counts = torch.zeros(BINS, dtype=torch.float64)

    def add(self, values: Tensor) -> None:
        """Take in one tensor. Raises CalibrationError where it holds NaN or infinity."""
        values = values.detach().float().flatten()
        if not values.numel():
            return
        low, high = (bound.item() for bound in torch.aminmax(values))
        if not (math.isfinite(low) and math.isfinite(high)) or low <= -_MASKED or high >= _MASKED:
            values = _without_masks(values)
            if not values.numel():
                return
            low, high = (bound.item() for bound in torch.aminmax(values))
        self._extremes(low, high)
        if self.observer not in (Observer.MIN_MAX, Observer.MOVING_AVERAGE):
            self._widen(max(abs(low), abs(high)))
            if self.limit:
                # Scaling by a power of two and flooring are exact, so that doubling the width merges bins exactly.
                bins = (values * (BINS / 2 / self.limit)).floor_().add_(BINS // 2).int()
                self.counts += torch.bincount(bins, minlength=BINS).cpu()

    def reduce(self) -> None:
        """Let every process know what all have seen: the extremes, and the sum of the histograms.

        Of a moving average, which depends on the order of the batches, it is the mean over the processes.
        """
        if world() == 1:
            return
        if self.observer is Observer.MOVING_AVERAGE:
            seen = float(self.low <= self.high)
            own = [self.low, self.high] if seen else [0.0, 0.0]
            low, high, count = summed(torch.tensor([*own, seen], dtype=torch.float64)).tolist()
            self.low, self.high = (low / count, high / count) if count else (math.inf, -math.inf)
            return
        bounds = torch.tensor([self.low, -self.high, -self.limit], dtype=torch.float64)
        self.low, high, limit = least(bounds).tolist()
        self.high = -high
        self._widen_to(-limit)
        self.counts = summed(self.counts)

    def extremes(self) -> Range:
        """The least and greatest value seen, and zero. Raises CalibrationError where nothing was seen."""
        if self.low > self.high:
            raise CalibrationError(
                "no data was seen",
                found=f"no value below {_MASKED:g}, from where on it counts as an attention mask",
                hint="look at the size of the inputs and weights",
            )
        return Range(min(self.low, 0.0), max(self.high, 0.0))

    def range(self, kind: QuantType, percentile: float) -> Range:
        """The range that the observer chooses; it holds zero. Raises CalibrationError where nothing was seen."""
        full = self.extremes()
        if self.limit and self.observer is Observer.PERCENTILE:
            return self._percentile(percentile)
        if self.limit and self.observer in (Observer.MSE, Observer.ENTROPY, Observer.OUTPUT):
            return self._search(kind, full)
        return full

    def _extremes(self, low: float, high: float) -> None:
        if self.observer is Observer.MOVING_AVERAGE and self.low <= self.high:
            self.low += _MOMENTUM * (low - self.low)
            self.high += _MOMENTUM * (high - self.high)
        else:
            self.low, self.high = min(self.low, low), max(self.high, high)

    def _widen(self, largest: float) -> None:
        if largest < self.limit or largest == 0:
            return
        self._widen_to(max(2.0 ** math.frexp(largest)[1], SMALLEST_SCALE))

    def _widen_to(self, limit: float) -> None:
        while self.limit and self.limit < limit:
            quarter = BINS // 4
            merged = self.counts.reshape(-1, 2).sum(dim=1)
            self.counts = torch.cat([merged.new_zeros(quarter), merged, merged.new_zeros(quarter)])
            self.limit *= 2
        self.limit = max(self.limit, limit)

    def _centers(self) -> Tensor:
        step = 2 * self.limit / BINS
        return (torch.arange(BINS, dtype=torch.float64) + 0.5) * step - self.limit

    def _percentile(self, percentile: float) -> Range:
        """Between the (100 - p)th and the pth percentile."""
        share = self.counts.cumsum(0) / self.counts.sum()
        centers = self._centers()
        tail = 1 - percentile / 100
        low = centers[int((share > tail).nonzero()[0])].item()
        high = centers[int((share >= 1 - tail - 1e-15).nonzero()[0])].item()
        return Range(min(max(low, self.low), 0.0), max(min(high, self.high), 0.0))

    def _search(self, kind: QuantType, full: Range) -> Range:
        """The shrunk range with the least cost: expected squared error, or divergence (Migacz, GTC 2017)."""
        used = self.counts > 0
        centers, counts = self._centers()[used], self.counts[used]
        candidates = [Range(full.low * share, full.high * share) for share in _SHARES]
        if self.observer is Observer.ENTROPY:
            costs = [_divergence(centers, counts, candidate, kind) for candidate in candidates]
        else:
            costs = squared_errors(centers, counts, candidates, kind)
        return candidates[costs.index(min(costs))]


def _without_masks(values: Tensor) -> Tensor:
    if bool(torch.isnan(values).any()):
        raise CalibrationError("NaN in calibration", found=f"{int(torch.isnan(values).sum())} of {values.numel()}")
    if bool((values == math.inf).any()):
        raise CalibrationError("infinity in calibration", found=f"{int(torch.isinf(values).sum())} of {values.numel()}")
    return values[values.abs() < _MASKED]


def grid(span: Range, kind: QuantType) -> tuple[float, int]:
    """Scale and zero point of the grid over a range, the scale exact in float32.

    An empty range (all values zero, or as good as) has scale 1.
    """
    if kind.symmetric:
        scale = max(-span.low, span.high) / kind.qmax
        zero_point = 0
    else:
        scale = (span.high - span.low) / (kind.qmax - kind.qmin)
        zero_point = round(kind.qmin - span.low / scale) if scale else 0
    scale = torch.tensor(scale if scale > SMALLEST_SCALE else 1.0, dtype=torch.float32).item()
    return scale, max(kind.qmin, min(kind.qmax, zero_point))


def squared_errors(centers: Tensor, counts: Tensor, spans: Sequence[Range], kind: QuantType) -> list[float]:
    """The squared error of the data on the grid over each range.

    Rounding costs a twelfth of a squared step; beyond the grid the distance to its end counts. With the running sums of
    1, c and c**2 over the bins, what lies beyond an end is found without going through the bins again for each range.
    """
    moments = [(counts * centers**power).cumsum(0) for power in range(3)]
    below = [torch.cat([sums.new_zeros(1), sums]) for sums in moments]
    costs = []
    for span in spans:
        scale, zero_point = grid(span, kind)
        low, high = (kind.qmin - zero_point) * scale, (kind.qmax - zero_point) * scale
        ends = torch.tensor([low - scale / 2, high + scale / 2], dtype=torch.float64)
        first, last = int(torch.searchsorted(centers, ends[0])), int(torch.searchsorted(centers, ends[1], right=True))
        left = [float(sums[first]) for sums in below]
        right = [float(sums[-1] - sums[last]) for sums in below]
        clipped = sum(s2 - 2 * end * s1 + end * end * s0 for (s0, s1, s2), end in ((left, low), (right, high)))
        costs.append(clipped + scale * scale / 12 * float(below[0][last] - below[0][first]))
    return costs


def _divergence(centers: Tensor, counts: Tensor, span: Range, kind: QuantType) -> float:
    """Kullback-Leibler divergence of the data from what the grid makes of it, each step's mass spread over its bins."""
    scale, zero_point = grid(span, kind)
    steps = torch.clamp(torch.round(centers / scale) + zero_point, kind.qmin, kind.qmax).long() - kind.qmin
    inside = (centers >= span.low) & (centers <= span.high)
    levels = kind.qmax - kind.qmin + 1
    mass = torch.zeros(levels, dtype=torch.float64).index_add_(0, steps[inside], counts[inside])
    bins = torch.zeros(levels, dtype=torch.float64).index_add_(0, steps[inside], torch.ones_like(counts[inside]))
    reference = counts / counts.sum()
    clipped = torch.zeros(levels, dtype=torch.float64).index_add_(0, steps[~inside], counts[~inside])
    held = mass + clipped
    spread = (held / bins.clamp(min=1))[steps] / counts.sum()
    tiny = 1e-12
    spread = torch.where(inside, spread, torch.full_like(spread, tiny))
    return float((reference * (reference.clamp(min=tiny) / spread.clamp(min=tiny)).log()).sum())


def weight_scales(weight: Tensor, axis: int | None, kind: QuantType, observer: Observer) -> Tensor:
    """Scales of a symmetric grid for a weight: float32[channels] along `axis`, float32[] where that is None.

    MSE searches each channel's scale for the least squared error; other observers take the largest magnitude. A channel
    that is all zero takes the greatest scale of its neighbours.

    Raises CalibrationError where the weight holds NaN or infinity.
    """
    matrix = weight.detach().float()
    matrix = matrix.reshape(1, -1) if axis is None else matrix.movedim(axis, 0).flatten(1)
    largest = matrix.abs().amax(dim=1)
    if not bool(torch.isfinite(largest).all()):
        raise CalibrationError("a weight is not finite", found=f"{int((~torch.isfinite(matrix)).sum())} values")
    scale = largest / kind.qmax
    if observer is Observer.MSE:
        scale = _least_squares_scale(matrix, scale, kind)
    tiny = scale <= SMALLEST_SCALE
    scale = torch.where(tiny, scale.max() if bool((~tiny).any()) else torch.tensor(1.0), scale)
    return scale.reshape(()) if axis is None else scale


def _least_squares_scale(matrix: Tensor, full: Tensor, kind: QuantType) -> Tensor:
    best, least = full.clone(), torch.full_like(full, math.inf)
    safe = full.clamp(min=torch.finfo(torch.float32).tiny)
    for shrink in torch.linspace(1.0, 0.5, 26).tolist():
        scale = (safe * shrink).unsqueeze(1)
        error = (torch.clamp(torch.round(matrix / scale), kind.qmin, kind.qmax) * scale - matrix).square().sum(dim=1)
        better = error < least
        best, least = torch.where(better, full * shrink, best), torch.where(better, error, least)
    return best


def pair_safe_scales(weight: Tensor, scale: Tensor, axis: int | None) -> Tensor:
    """Scales raised until |q[k] + q[k+1]| <= 128 for the weights that kernels without VNNI multiply as a pair.

    Such a CPU (x86 before VNNI) sums two products of uint8 and int8 in int16, which saturates at 2 * 255 * 127; with
    128, 255 * 128 fits, and results are exact. Pairs are neighbours in the order of the reduction: kernel positions
    outside, input channels inside. A sum of 127 steps before rounding is at most 128 after it.
    """
    matrix = weight.detach().float().movedim(axis or 0, 0)
    rows = matrix.movedim(1, -1).flatten(1) if matrix.dim() > 1 else matrix.reshape(1, -1)
    rows = torch.nn.functional.pad(rows, (0, rows.shape[1] % 2))
    needed = rows.unflatten(1, (-1, 2)).sum(dim=2).abs().amax(dim=1) / 127
    return torch.maximum(scale, needed.max() if scale.dim() == 0 else needed)
