"""Patterns of zeros that a parameter is promised to have, checked against the zeros it has."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, ClassVar, Protocol, runtime_checkable

import torch
from torch import Tensor

from .errors import DescriptionError


@runtime_checkable
class Pattern(Protocol):
    """What a sparsity pattern answers: does this weight have it, and if not, where not."""

    name: ClassVar[str]

    def violation(self, weight: Tensor) -> str | None:
        """What breaks the pattern in `weight` (output channels first), or None where it holds."""
        ...


@dataclass(frozen=True)
class Unstructured:
    """At most `density` of the values are not zero, anywhere."""

    name: ClassVar[str] = "unstructured"
    density: float

    def __post_init__(self) -> None:
        if not 0 < self.density <= 1:
            raise DescriptionError("density is the share that is not zero", expected="in (0, 1]", found=self.density)

    def violation(self, weight: Tensor) -> str | None:
        """None where the share of values that are not zero is within `density`."""
        found = torch.count_nonzero(weight).item() / max(weight.numel(), 1)
        return None if found <= self.density + 1e-9 else f"density {found:.4f} is over {self.density:.4f}"


@dataclass(frozen=True)
class NM:
    """At most `n` of every `m` consecutive values along the reduction (all but the output dimension) are not zero."""

    name: ClassVar[str] = "n_m"
    n: int
    m: int

    def __post_init__(self) -> None:
        if not 0 < self.n < self.m:
            raise DescriptionError(
                "an N:M pattern leaves n of every m values",
                expected="0 < n < m, as NM(2, 4)",
                found=f"n={self.n}, m={self.m}",
            )

    def violation(self, weight: Tensor) -> str | None:
        """None where every whole group has at most n values that are not zero.

        The reduction runs over input channels for each kernel position, as GEMM-based kernels lay it out.
        """
        rows = weight.movedim(1, -1).reshape(-1, weight.shape[1]) if weight.dim() > 1 else weight.reshape(1, -1)
        if rows.shape[1] % self.m:
            return f"the reduction has {rows.shape[1]} values, not a multiple of {self.m}"
        counts = torch.count_nonzero(rows.reshape(rows.shape[0], -1, self.m), dim=2)
        bad = int((counts > self.n).sum())
        return f"{bad} of {counts.numel()} groups have more than {self.n} of {self.m} values" if bad else None


@dataclass(frozen=True)
class Block:
    """Zeros come in whole blocks of `rows` output channels by `columns` reduction values; `density` bounds the rest."""

    name: ClassVar[str] = "block"
    rows: int
    columns: int
    density: float

    def __post_init__(self) -> None:
        if self.rows < 1 or self.columns < 1 or not 0 < self.density <= 1:
            expected = "rows and columns of 1 or more, and a density in (0, 1]"
            raise DescriptionError("blocks cannot have this size or density", expected=expected, found=str(self))

    def violation(self, weight: Tensor) -> str | None:
        """None where at most `density` of the blocks hold a value that is not zero."""
        matrix = weight.movedim(1, -1).reshape(weight.shape[0], -1) if weight.dim() > 1 else weight.reshape(1, -1)
        padded = torch.nn.functional.pad(matrix, (0, -matrix.shape[1] % self.columns, 0, -matrix.shape[0] % self.rows))
        blocks = padded.reshape(padded.shape[0] // self.rows, self.rows, -1, self.columns)
        used = (blocks != 0).any(dim=3).any(dim=1)
        found = used.float().mean().item()
        return None if found <= self.density + 1e-6 else f"block density {found:.4f} is over {self.density:.4f}"


@dataclass(frozen=True)
class Channel:
    """Whole output channels are zero: `indices` lists them."""

    name: ClassVar[str] = "channel"
    indices: tuple[int, ...]

    def violation(self, weight: Tensor) -> str | None:
        """None where each of the listed channels is zero."""
        bad = [i for i in self.indices if not -1 < i < weight.shape[0] or bool(weight[i].count_nonzero())]
        return f"channels {bad} are not zero" if bad else None


PATTERNS: dict[str, type[Unstructured] | type[NM] | type[Block] | type[Channel]] = {
    kind.name: kind for kind in (Unstructured, NM, Block, Channel)
}


def pattern_to_json(pattern: Pattern) -> dict[str, Any]:
    """Plain data for an archive."""
    return {"pattern": pattern.name, **asdict(pattern)}  # type: ignore[call-overload]  # every pattern is a dataclass


def pattern_from_json(data: Mapping[str, Any]) -> Pattern:
    """The inverse of `pattern_to_json`. Raises KeyError, TypeError or ValueError on data of another shape."""
    options: dict[str, Any] = {k: tuple(value) if isinstance(value, list) else value for k, value in data.items()}
    pattern: Pattern = PATTERNS[options.pop("pattern")](**options)
    return pattern


def mask_of(pattern: Pattern, weight: Tensor) -> Tensor:
    """Where a weight with this pattern may differ from zero, bool[weight.shape]: what training has to hold.

    Where whole channels are promised, only those are held; single zeros elsewhere may move.
    """
    if isinstance(pattern, Channel):
        mask = torch.ones_like(weight, dtype=torch.bool)
        mask[list(pattern.indices)] = False
        return mask
    return weight != 0
