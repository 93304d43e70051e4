"""What a target likes, in one typed description that passes take their defaults from. Passes know no target."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

from tersor.ir.quantization import INT8, Scheme
from tersor.ir.sparsity import Pattern

from .quantization.placement import Coverage
from .sparsity.patterns import density_of, with_density


@dataclass(frozen=True)
class Multiples:
    """Channel counts that a target computes without waste: a layer's outputs, as PE of a dataflow, and its inputs, as
    SIMD."""

    outputs: int = 1
    inputs: int = 1

    @property
    def channels(self) -> int:
        """What suits both: the outputs of one layer are the inputs of the next."""
        return math.lcm(self.outputs, self.inputs)


@dataclass(frozen=True)
class FastPattern:
    """A pattern of zeros that a target computes faster than dense.

    pattern: at the greatest density from which on that pays.
    """

    pattern: Pattern

    @property
    def pays_from(self) -> float:
        """The share of weights left from which on it is faster."""
        return density_of(self.pattern)

    def at(self, density: float) -> Pattern | None:
        """The pattern with that share of weights left; None where that does not pay, or it has another."""
        if density > self.pays_from:
            return None
        pattern = with_density(self.pattern, density)
        return pattern if abs(density_of(pattern) - density) < 1e-9 else None


@dataclass(frozen=True)
class Preferences:
    """What a target likes.

    scheme, coverage: how, and how much, to quantize. recipe: the ready-made one that does so.
    wider: a coverage beyond that which may run faster, where the metric allows it.
    pair_safe: whether weights are kept within what CPUs without VNNI multiply exactly.
    short_multipliers: whether requantization is to have multipliers of a few bits (`SnapScales`).
    multiples: see there; `PruneChannels` keeps to them.
    patterns: the sparsity that runs fast, the one that costs least accuracy first.
    weight_bits, activation_bits: the widths that it computes with and gains by, the widest first; every pair of them.
    block_bits: widths of weights in blocks, beside activations in float; none where it takes none.
    floats: whether it runs float operators, so that layers may stay float.
    """

    scheme: Scheme = INT8
    coverage: Coverage = Coverage.FASTEST
    wider: Coverage | None = None
    recipe: str = "int8"
    pair_safe: bool = False
    short_multipliers: bool = False
    multiples: Multiples = Multiples()
    patterns: tuple[FastPattern, ...] = ()
    weight_bits: tuple[int, ...] = (8,)
    activation_bits: tuple[int, ...] = (8,)
    block_bits: tuple[int, ...] = ()
    floats: bool = True

    def schemes(self) -> tuple[Scheme, ...]:
        """The schemes of all legal widths, the most exact first: fewer bits for weights, then for activations too."""
        found = []
        for activation in self.activation_bits:
            for weight in self.weight_bits:
                if weight <= activation:
                    kinds = replace(self.scheme.activation, bits=activation), replace(self.scheme.weight, bits=weight)
                    found.append(Scheme(*kinds))
        return tuple(found)

    def sparse(self, density: float) -> Pattern | None:
        """The pattern that costs least accuracy of those that are faster than dense at a density; None without one."""
        return next((pattern for fast in self.patterns if (pattern := fast.at(density)) is not None), None)
