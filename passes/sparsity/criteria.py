"""What a single weight is worth, and how those that stay make up for those that go."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from tersor.ir.errors import CalibrationError, PassError
from tersor.ir.program import Program
from tersor.ir.sparsity import Block, Pattern, Unstructured

from ..pruning.gathering import Loss, gradients, require_data
from .layers import Layer, second_moments
from .optimal_update import optimal_update
from .patterns import as_matrix, keep_mask


@dataclass(frozen=True)
class WeightCriterion(ABC):
    """From a layer to a score a weight.

    comparable: whether scores of different layers are on one scale.
    """

    comparable: ClassVar[bool] = False

    def gather(self, program: Program, layers: Mapping[str, Layer]) -> Any:
        """Run what data the criterion needs through the program, once."""
        return None

    @abstractmethod
    def score(self, layer: Layer, gathered: Any) -> Tensor:
        """The worth of each weight, as a matrix [out, columns] (see `as_matrix`)."""

    def sparsify(self, layer: Layer, pattern: Pattern, gathered: Any) -> Tensor:
        """The weight as a matrix with zeros where the pattern has them."""
        matrix = as_matrix(layer.weight)
        return matrix * keep_mask(pattern, self.score(layer, gathered))


@dataclass(frozen=True)
class WeightMagnitude(WeightCriterion):
    """The absolute value (Han et al. 2015, arXiv:1506.02626)."""

    def score(self, layer: Layer, gathered: Any) -> Tensor:
        """|w|."""
        return as_matrix(layer.weight).abs().double()


@dataclass(frozen=True)
class WeightGradient(WeightCriterion):
    """How much the loss changes without the weight: mean over batches of (weight * gradient)^2.

    batches: `(inputs.., targets..)`; loss: `loss(outputs, *targets)`.
    """

    comparable: ClassVar[bool] = True

    batches: Iterable[Any] | None = None
    loss: Loss | None = None

    def gather(self, program: Program, layers: Mapping[str, Layer]) -> dict[str, Tensor]:
        """Mean squares of the gradient, by weight."""
        sums: dict[str, Tensor] = {}
        count = 0
        for found in gradients(program, require_data(self, self.batches, self.loss), self.loss):
            count += 1
            for name in layers.keys() & found.keys():
                sums[name] = sums.get(name, torch.zeros(())) + found[name].square()
        return {name: total / count for name, total in sums.items()}

    def score(self, layer: Layer, gathered: Any) -> Tensor:
        """w^2 * mean(g^2)."""
        squares = gathered.get(layer.name)
        weight = layer.weight.double()
        return as_matrix(weight.square() * squares if squares is not None else torch.zeros_like(weight))


@dataclass(frozen=True)
class Wanda(WeightCriterion):
    """|weight| times the norm of the input that it multiplies (Sun et al. 2023, arXiv:2306.11695).

    batches: what the program is called with. Unstructured densities are met in every row by itself, as in the paper.
    """

    batches: Iterable[Any] | None = None

    def gather(self, program: Program, layers: Mapping[str, Layer]) -> dict[str, Tensor]:
        """Mean squares of each layer's inputs."""
        return second_moments(program, layers, require_data(self, self.batches), full=False)

    def score(self, layer: Layer, gathered: Any) -> Tensor:
        """|w| * sqrt(mean(x^2)), each group of rows with its own inputs."""
        norms = _of(gathered, layer).sqrt()
        return as_matrix(layer.weight).abs().double() * norms.repeat_interleave(len(layer.weight) // len(norms), 0)

    def sparsify(self, layer: Layer, pattern: Pattern, gathered: Any) -> Tensor:
        """Rows compete among themselves where the pattern leaves the choice."""
        if not isinstance(pattern, Unstructured):
            return super().sparsify(layer, pattern, gathered)
        scores = self.score(layer, gathered)
        masks = [keep_mask(pattern, row[None]) for row in scores]
        return as_matrix(layer.weight) * torch.cat(masks)


@dataclass(frozen=True)
class SparseGPT(WeightCriterion):
    """Optimal brain surgeon by columns: what stays makes up for what goes (Frantar, Alistarh 2023, arXiv:2301.00774).

    batches: what the program is called with. block: how many columns choose their mask together.
    damping: added to the Hessian's diagonal, as a share of its mean.
    """

    batches: Iterable[Any] | None = None
    block: int = 128
    damping: float = 0.01

    def __post_init__(self) -> None:
        if self.block < 1 or self.damping <= 0:
            found = f"block={self.block}, damping={self.damping:g}"
            raise PassError("not options of SparseGPT", expected="block >= 1 and damping > 0", found=found)

    def gather(self, program: Program, layers: Mapping[str, Layer]) -> dict[str, Tensor]:
        """Second moments of each layer's inputs."""
        return second_moments(program, layers, require_data(self, self.batches), full=True)

    def score(self, layer: Layer, gathered: Any) -> Tensor:
        """w^2 times the input's second moment: the error that the weight's absence makes before anything makes up."""
        moments = _of(gathered, layer).diagonal(dim1=1, dim2=2)
        rows = moments.repeat_interleave(len(layer.weight) // len(moments), 0)
        return as_matrix(layer.weight).double().square() * rows

    def sparsify(self, layer: Layer, pattern: Pattern, gathered: Any) -> Tensor:
        """Each group of rows with its own Hessian. Where blocks reach over groups, the rest makes up for nothing."""
        moments = _of(gathered, layer)
        matrix = as_matrix(layer.weight)
        if isinstance(pattern, Block) and len(moments) > 1 and len(matrix) // len(moments) % pattern.rows:
            return super().sparsify(layer, pattern, gathered)
        parts = matrix.chunk(len(moments))
        updated = [
            optimal_update(part, moment, pattern, self.block, self.damping)
            for part, moment in zip(parts, moments, strict=True)
        ]
        return torch.cat(updated)


def _of(gathered: Mapping[str, Tensor], layer: Layer) -> Tensor:
    if layer.name not in gathered:
        raise CalibrationError(f"no data reaches {layer.name}", hint="keep it, or give batches that use it")
    return gathered[layer.name]
