"""Protect the weights that large activations meet, before they are rounded."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from tersor.ir.errors import PassError
from tersor.ir.program import Program
from tersor.ir.stage import Stage

from ..base import Pass, PassResult, Promise
from ..progress import track
from .block_weights import INT4_BLOCKS, BlockScheme, on_blocks
from .finite import refuse_unfinite_weights
from .migration import Site, linear_sites, migrate, multiplied
from .placement import matches
from .smooth_quant import read_rows

_WORTH = 0.9
"""Gains below a tenth are lost in what GPTQ does afterwards."""

ALPHAS = (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0)


@dataclass(frozen=True)
class AWQ(Pass):
    """Multiply the weights of channels whose activations are large, and divide what gives those activations.

        y = W x   is   y = (W diag(s)) (x / s),   s[c] = mean|x[c]|**alpha

    Lin et al. 2024 (arXiv:2306.00978). A weight that is larger before rounding has the smaller relative error after it,
    and the channels with large activations matter most. Alpha is searched for each value by the error that rounding
    leaves in the outputs of all that read it, on a sample of rows. Only where something before takes the division in
    (see `migration`), so that it costs no time.

    batches: as for `Calibrate`; the first `count` are read. scheme: the blocks that weights will be rounded in.
    alphas: those tried, beside doing nothing. skip: as for `InsertFakeQuant`.

    Raises CalibrationError where data is missing, empty or not finite.
    """

    takes: ClassVar[frozenset[Stage]] = frozenset({Stage.FLOAT})
    promise: ClassVar[Promise] = Promise.EXACT

    batches: Iterable[Any] | None = None
    count: int = 16
    scheme: BlockScheme = INT4_BLOCKS
    alphas: tuple[float, ...] = ALPHAS
    skip: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if not self.alphas or not all(0 < alpha <= 1 for alpha in self.alphas):
            raise PassError("alphas lie between 0 and 1", found=self.alphas)

    def run(self, program: Program) -> PassResult:
        """Scale every value that gains by it."""
        refuse_unfinite_weights(program)
        sites = [
            site
            for site in linear_sites(program)
            if site.scaled is not None and not any(matches(r, p) for r in site.readers for p in self.skip)
        ]
        if not sites:
            return PassResult(program, False, ("no linear whose input can be divided for free",))
        samples = read_rows(program, [site.value for site in sites], self.batches, self.count)
        alphas = []
        for site in track(sites, "scale"):
            found = self._search(program, site, samples[site.value].sample()) if samples[site.value].seen else None
            if found is not None:
                alphas.append(found[0])
                migrate(program, site, found[1])
        gained = f", alpha {min(alphas):g} to {max(alphas):g}" if alphas else ""
        return PassResult(program, bool(alphas), (f"{len(alphas)} of {len(sites)} values scaled{gained}",))

    def _search(self, program: Program, site: Site, rows: Tensor) -> tuple[float, Tensor] | None:
        """The alpha and the factors with the least error; None where none is better than doing nothing."""
        weights = [program.tensor(str(r.args[1].target)).detach().float() for r in site.readers]  # type: ignore[union-attr]
        gram = rows.T @ rows
        least = _WORTH * self._error(gram, weights, rows.new_ones(rows.shape[1]), site)
        best: tuple[float, Tensor] | None = None
        mean = rows.abs().mean(0)
        for alpha in self.alphas:
            factors = site.tied(_factors(mean, alpha))
            error = self._error(gram, weights, factors, site)
            if error < least:
                least, best = error, (alpha, factors)
        return best

    def _error(self, gram: Tensor, weights: list[Tensor], factors: Tensor, site: Site) -> float:
        """Squared error of the readers' outputs over the sample, whose x x^T is `gram`."""
        total = 0.0
        for reader, weight in zip(site.readers, weights, strict=True):
            rounded = on_blocks(multiplied(reader, weight, factors), -1, self.scheme)
            error = rounded / factors - weight
            total += float(((error @ gram) * error).sum())
        return total


def _factors(mean: Tensor, alpha: float) -> Tensor:
    """mean**alpha, moved so that the geometric mean of the least and the greatest is 1."""
    usable = mean > 1e-8
    if not bool(usable.any()):
        return torch.ones_like(mean)
    factors = torch.where(usable, mean.clamp(min=1e-8) ** alpha, 1.0)
    middle = (factors[usable].max() * factors[usable].min()).sqrt()
    return torch.where(usable, (factors / middle).clamp(1e-4, 1e4), 1.0)
