"""Move the difficulty of outlier channels from activations into weights."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, fx

from tersor.ir.errors import CalibrationError, PassError
from tersor.ir.operators import quantize_to_grid
from tersor.ir.program import Program
from tersor.ir.quantization import INT8, QuantType, Scheme
from tersor.ir.stage import Stage

from ..base import Pass, PassResult, Promise
from ..compare import node_values
from ..progress import track
from .calibration_data import required
from .finite import refuse_unfinite, refuse_unfinite_weights
from .migration import Site, linear_sites, migrate, multiplied
from .observers import Range, grid, weight_scales
from .placement import matches
from .roles import WEIGHTS
from .samples import Rows

_LINEAR = torch.ops.aten.linear.default
ALPHAS = (0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9)


@dataclass(frozen=True)
class SmoothQuant(Pass):
    """Divide channels of what linears read, and multiply their weights, so that both round well.

        y = W x   is   y = (W diag(s)) (x / s),   s[c] = max|x[c]|**alpha / max|W[:, c]|**(1 - alpha)

    Xiao et al. 2023 (arXiv:2211.10438). Activations have one scale a tensor, so a channel a hundred times larger
    than the others leaves these two or three steps; weights have a scale a row, and room. Alpha is searched for each
    value by the error of all that read it, both sides quantized, on a sample of rows. The division goes into the
    norm, linear, product or attention before (see `migration`), or becomes a multiplication where nothing can take
    it in: that costs time, so it is done only where it at least halves the error.

    batches: as for `Calibrate`; the first `count` are read.
    scheme: the grids that the error is judged on. alphas: those tried, beside doing nothing.
    insert: whether a multiplication may be inserted. skip: as for `InsertFakeQuant`; such linears are left out.
    convolutional: whether to go through the data where convolutions outnumber linears, which then matter little.
    only: patterns of which all readers of a value have to match one; empty means all.

    Raises CalibrationError where data is missing, empty or not finite.
    """

    takes: ClassVar[frozenset[Stage]] = frozenset({Stage.FLOAT})
    promise: ClassVar[Promise] = Promise.EXACT

    batches: Iterable[Any] | None = None
    count: int = 16
    scheme: Scheme = INT8
    alphas: tuple[float, ...] = ALPHAS
    insert: bool = True
    skip: tuple[str, ...] = ()
    only: tuple[str, ...] = ()
    convolutional: bool = True

    def __post_init__(self) -> None:
        if not self.alphas or not all(0 <= alpha <= 1 for alpha in self.alphas):
            raise PassError("alphas lie between 0 and 1", found=self.alphas)

    def run(self, program: Program) -> PassResult:
        """Smooth every value that gains by it."""
        refuse_unfinite_weights(program)
        sites = [site for site in linear_sites(program) if self._wanted(site)]
        convolutions = sum(node.target in WEIGHTS and node.target is not _LINEAR for node in program.graph.nodes)
        linears = sum(len(site.readers) for site in sites)
        if sites and not self.convolutional and convolutions > linears:
            return PassResult(program, False, (f"left alone: {linears} linears beside {convolutions} convolutions",))
        if not sites:
            return PassResult(program, False, ("no linear layers: nothing to smooth",))
        samples = read_rows(program, [site.value for site in sites], self.batches, self.count)
        smoothed, inserted, alphas = 0, 0, []
        for site in track(sites, "smooth"):
            rows = samples[site.value]
            found = self._search(program, site, rows) if rows.seen else None
            if found is not None:
                alphas.append(found[0])
                inserted += site.scaled is None
                smoothed += 1
                migrate(program, site, found[1])
        return PassResult(program, bool(smoothed), _notes(len(sites), smoothed, inserted, alphas))

    def _wanted(self, site: Site) -> bool:
        if any(matches(reader, pattern) for reader in site.readers for pattern in self.skip):
            return False
        return not self.only or all(any(matches(r, pattern) for pattern in self.only) for r in site.readers)

    def _search(self, program: Program, site: Site, rows: Rows) -> tuple[float, Tensor] | None:
        """The alpha and the factors with the least error, where they gain enough."""
        if site.scaled is None and not self.insert:
            return None
        sample = rows.sample()
        weights = [program.tensor(str(r.args[1].target)).detach().float() for r in site.readers]  # type: ignore[union-attr]
        assert rows.largest is not None
        plain = _error(sample, weights, sample.new_ones(sample.shape[1]), site, self.scheme)
        best: tuple[float, Tensor] | None = None
        least = plain * (0.98 if site.scaled is not None else 0.5)
        for alpha in self.alphas:
            factors = site.tied(smoothing(rows.largest, weights, alpha))
            error = _error(sample, weights, factors, site, self.scheme)
            if error < least:
                least, best = error, (alpha, factors)
        return best


def read_rows(
    program: Program, values: Iterable[fx.Node], batches: Iterable[Any] | None, count: int | None, limit: int = 512
) -> dict[fx.Node, Rows]:
    """A sample of rows, the last dimension being channels, of each value over the first `count` batches.

    Raises CalibrationError, with the node where it first appears, where something is not finite.
    """
    samples = {value: Rows(limit) for value in values}

    def visit(node: fx.Node, value: Any) -> None:
        if node in samples:
            samples[node].add(value.reshape(-1, value.shape[-1]))

    for index, inputs in enumerate(track(required(program, batches, count), "sample", count)):
        node_values(program, inputs, visit)
        for node, rows in samples.items():
            if rows.largest is not None and not bool(torch.isfinite(rows.largest).all()):
                raise refuse_unfinite(program, inputs, CalibrationError(f"calibration batch {index}", node=node))
    return samples


def smoothing(largest: Tensor, weights: list[Tensor], alpha: float) -> Tensor:
    """The factors of one alpha, float32[channels], around 1: largest[c]**alpha / max|W[:, c]|**(1 - alpha).

    A channel without activations or without weights is left alone.
    """
    weight = torch.stack([w.abs().amax(0) for w in weights]).amax(0)
    usable = (largest > 1e-8) & (weight > 1e-8)
    factors = torch.where(usable, largest.clamp(min=1e-8) ** alpha / weight.clamp(min=1e-8) ** (1 - alpha), 1.0)
    middle = factors[usable].log().mean().exp() if bool(usable.any()) else torch.tensor(1.0)
    return torch.where(usable, (factors / middle).clamp(1e-4, 1e4), 1.0)


def _error(rows: Tensor, weights: list[Tensor], factors: Tensor, site: Site, scheme: Scheme) -> float:
    """Squared error of the readers' outputs, activations divided and weights multiplied, both quantized."""
    quantized = on_grid(rows / factors, scheme.activation)
    total = 0.0
    for reader, weight in zip(site.readers, weights, strict=True):
        scaled = multiplied(reader, weight, factors)
        total += float((quantized @ on_rows(scaled, scheme.weight).T - rows @ weight.T).square().sum())
    return total


def on_grid(values: Tensor, kind: QuantType) -> Tensor:
    """Values rounded to the grid over their extremes."""
    low, high = (bound.item() for bound in torch.aminmax(values))
    scale, zero = grid(Range(min(low, 0.0), max(high, 0.0)), kind)
    return _rounded(values, torch.tensor(scale), torch.tensor(zero), None, kind)


def on_rows(weight: Tensor, kind: QuantType) -> Tensor:
    """A weight rounded to the grid that `Calibrate` would give it."""
    from tersor.ir.quantization import Granularity, Observer

    axis = 0 if kind.granularity is Granularity.PER_CHANNEL else None
    scale = weight_scales(weight, axis, kind, Observer.MIN_MAX)
    return _rounded(weight, scale, torch.zeros_like(scale), axis, kind)


def _rounded(values: Tensor, scale: Tensor, zero: Tensor, axis: int | None, kind: QuantType) -> Tensor:
    steps = quantize_to_grid(values, scale, zero, axis, kind.qmin, kind.qmax)
    spread = (scale, zero) if axis is None else (scale.unsqueeze(1), zero.unsqueeze(1))
    return (steps - spread[1]) * spread[0]


def _notes(sites: int, smoothed: int, inserted: int, alphas: list[float]) -> tuple[str, ...]:
    if not smoothed:
        return (f"none of {sites} values that linears read has outlier channels worth moving",)
    extra = f", {inserted} by a multiplication" if inserted else ""
    return (f"{smoothed} of {sites} values smoothed{extra}, alpha {min(alphas):g} to {max(alphas):g}",)
