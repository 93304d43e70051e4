"""Set weights to zero in a pattern."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar

import torch

from tersor.ir.errors import PassError
from tersor.ir.program import Program
from tersor.ir.sparsity import NM, Pattern
from tersor.ir.stage import Stage

from ..base import Pass, PassResult, Promise
from .allocation import Allocation, Uniform
from .criteria import WeightCriterion, WeightMagnitude
from .layers import Layer, layers
from .patterns import as_weight, density_of, misfit, with_density

if TYPE_CHECKING:
    from ..preferences import Preferences

Rules = tuple[tuple[str, Pattern | None], ...]


@dataclass(frozen=True)
class Sparsify(Pass):
    """Set weights of linears and convolutions to zero, and promise it in the program's sparsity table.

    The verifier checks the promise, training holds the zeros, symmetric quantization keeps them, and backends that have
    kernels for the pattern use it.

    pattern: Unstructured(density), NM(n, m) or Block(rows, columns, density).
    criterion: which weights stay, and whether the others are adjusted.
    allocation: how the density is shared out among layers; N:M has one density everywhere.
    rules: pairs of a regular expression of parameter names and the pattern for what it matches, None to keep that
        dense; the first that matches holds. What none matches has `pattern`.

    Weights that something else reads too (tied embeddings), or that do not fit the pattern, stay dense and are noted.

    Raises PassError where nothing is left to be sparse or a rule matches nothing; CalibrationError where the criterion
    has no data.
    """

    takes: ClassVar[frozenset[Stage]] = frozenset({Stage.FLOAT, Stage.FAKE_QUANT})
    promise: ClassVar[Promise] = Promise.APPROXIMATE

    pattern: Pattern = field(default_factory=lambda: NM(2, 4))
    criterion: WeightCriterion = field(default_factory=WeightMagnitude)
    allocation: Allocation = field(default_factory=Uniform)
    rules: Rules = ()

    @classmethod
    def suited(cls, likes: Preferences, density: float, **options: Any) -> Sparsify:
        """With the pattern that a target runs fast at a density. Raises PassError where it has none."""
        pattern = options.pop("pattern", None) or likes.sparse(density)
        if pattern is None:
            known = "; ".join(f"{fast.pattern} and sparser" for fast in likes.patterns)
            raise PassError(
                "the target runs no pattern faster than dense at this density",
                expected=known or "a target that skips zeros",
                found=f"a density of {density:g}",
            )
        return cls(**{"pattern": pattern, **options})

    def run(self, program: Program) -> PassResult:
        """Choose, score, set to zero, promise."""
        chosen, dense = self.plan(program)
        every = layers(program)
        gathered = self.criterion.gather(program, {name: every[name] for name in chosen})
        kept = total = 0
        for name, pattern in chosen.items():
            layer = every[name]
            matrix = self.criterion.sparsify(layer, pattern, gathered)
            weight = as_weight(matrix, layer.weight.shape)
            if not bool(weight.any()):
                raise PassError(
                    f"all of {name} would be zero", expected="a density that keeps a value", found=str(pattern)
                )
            program.set_tensor(name, weight)
            program.sparsity[name] = pattern
            kept, total = kept + int(torch.count_nonzero(weight)), total + weight.numel()
        notes = [f"{len(chosen)} weights sparse, {kept / total:.4f} of their values kept"]
        notes += [f"dense: {name}: {why}" for name, why in list(dense.items())[:4]]
        return PassResult(program, True, tuple(notes))

    def plan(self, program: Program) -> tuple[dict[str, Pattern], dict[str, str]]:
        """The pattern of each weight that will be sparse, and for the others why not."""
        found = layers(program)
        self._refuse_unmatched(found)
        chosen: dict[str, Pattern] = {}
        dense: dict[str, str] = {}
        for name, layer in found.items():
            pattern = self._pattern(name)
            why = "a rule keeps it" if pattern is None else misfit(pattern, layer.weight)
            if pattern is None or why is not None:
                dense[name] = str(why)
            else:
                chosen[name] = pattern
        others = {name for name, tensor in program.parameters().items() if tensor.dim() > 1} - set(found)
        dense |= dict.fromkeys(sorted(others), "read by other operators than linear and convolution")
        if not chosen:
            raise PassError(
                "no weight can be sparse",
                expected="weights of linear and convolution",
                found="; ".join(f"{name}: {why}" for name, why in list(dense.items())[:4]) or "no weight",
                hint="Canonicalize() before writes matrix products with weights as linear",
            )
        return self._allocated(program, chosen, found), dense

    def _allocated(
        self, program: Program, chosen: Mapping[str, Pattern], found: Mapping[str, Layer]
    ) -> dict[str, Pattern]:
        default = [name for name, pattern in chosen.items() if pattern == self.pattern and not isinstance(pattern, NM)]
        if not default or isinstance(self.allocation, Uniform):
            return dict(chosen)
        shared = {name: found[name] for name in default}
        densities = self.allocation.densities(program, shared, density_of(self.pattern))
        return {**chosen, **{name: with_density(chosen[name], density) for name, density in densities.items()}}

    def _pattern(self, name: str) -> Pattern | None:
        for expression, pattern in self.rules:
            if re.search(expression, name):
                return pattern
        return self.pattern

    def _refuse_unmatched(self, found: Mapping[str, Layer]) -> None:
        for expression, _ in self.rules:
            if not any(re.search(expression, name) for name in found):
                known = ", ".join(list(found)[:8])
                raise PassError(f"rule {expression!r} matches no weight", expected=f"among {known}")
