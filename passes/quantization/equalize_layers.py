"""Even out the ranges of channels across neighbouring layers."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, fx

from tersor.ir.errors import PassError
from tersor.ir.program import Program
from tersor.ir.stage import Stage

from ..base import Pass, PassResult, Promise, on_the_cpu
from .migration import Site, chain_sites, migrate


@dataclass(frozen=True)
class EqualizeLayers(Pass):
    """Scale channels between two layers so that both weights have the same range in each.

        y = W2 relu(W1 x + b1)   is   y = (W2 diag(s)) relu(diag(1/s) W1 x + b1 / s),   s[c] = sqrt(r1[c] / r2[c])

    r1[c] is the largest magnitude of the output channel c of W1, r2[c] of the input channel of W2: cross-layer
    equalization, Nagel et al. 2019 (arXiv:1906.04721), section 4.1. It needs no data. It goes through relu, pooling and
    depthwise convolutions; batch norm is folded before. It helps weights that have one scale a tensor, and weights
    of few bits; beside one scale a channel it changes little.

    sweeps: how often all pairs are visited. tolerance: sweeping ends when no factor is further from 1 than this.
    """

    takes: ClassVar[frozenset[Stage]] = frozenset({Stage.FLOAT})
    promise: ClassVar[Promise] = Promise.EXACT

    sweeps: int = 20
    tolerance: float = 0.01

    def __post_init__(self) -> None:
        if self.sweeps < 1 or self.tolerance <= 0:
            raise PassError("sweeps is at least 1, tolerance positive", found=(self.sweeps, self.tolerance))

    @on_the_cpu
    def run(self, program: Program) -> PassResult:
        """Equalize all pairs, over and over until nothing moves."""
        sites = chain_sites(program)
        most, done = 1.0, 0
        for sweep in range(self.sweeps if sites else 0):
            furthest = 0.0
            for site in sites:
                factors = equalizing(program, site)
                furthest = max(furthest, float(factors.log().abs().max()))
                migrate(program, site, factors)
            most, done = max(most, float(torch.tensor(furthest).exp())), sweep + 1
            if furthest < self.tolerance:
                break
        if not sites:
            return PassResult(program, False, ("no chains of layers to equalize",))
        return PassResult(program, True, (f"{len(sites)} pairs in {done} sweeps, the largest factor {most:.3g}",))


def equalizing(program: Program, site: Site) -> Tensor:
    """The factors of one pair, float32[channels]; 1 where a channel is all zero on either side."""
    (reader,) = site.readers
    after = _input_ranges(program, reader)
    before = torch.zeros_like(after)
    for name, axis in site.scaled or ():
        tensor = program.tensor(name).detach().float()
        if tensor.dim() > 1:
            ranges = tensor.abs().movedim(axis, 0).flatten(1).amax(1)
            before = torch.maximum(before, _spread(ranges, site))
    usable = (before > 1e-12) & (after > 1e-12)
    return torch.where(usable, (before.clamp(min=1e-12) / after.clamp(min=1e-12)).sqrt().clamp(1e-4, 1e4), 1.0)


def _spread(ranges: Tensor, site: Site) -> Tensor:
    """One range for each channel of the value, where several share a row of the source."""
    if site.repeats is None:
        return ranges
    groups, _, size = site.repeats
    return ranges.reshape(groups, 1, size).expand(site.repeats).reshape(-1)


def _input_ranges(program: Program, reader: fx.Node) -> Tensor:
    """The largest magnitude of each input channel of a weight, float32[channels]."""
    weight = program.tensor(str(reader.args[1].target)).detach().float().abs()  # type: ignore[union-attr]  # a constant
    groups = int(reader.args[6]) if len(reader.args) > 6 else 1  # type: ignore[arg-type]  # an int
    grouped = weight.reshape(groups, weight.shape[0] // groups, weight.shape[1], -1)
    return grouped.amax((1, 3)).reshape(-1)
