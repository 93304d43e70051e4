"""How much is to be left: a share of channels, parameters, multiply-accumulates, bytes or time."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import ClassVar

from tersor.ir.errors import PassError

from .axes import Remaining
from .costs import Costs
from .groups import Group
from .layer_table import LayerTable


@dataclass(frozen=True)
class Target(ABC):
    """share: what is left, over what there was, in (0, 1]."""

    what: ClassVar[str]

    share: float

    def __post_init__(self) -> None:
        share: object = self.share  # of a caller whose types nobody checks
        if isinstance(share, str) or not 0 < self.share <= 1:
            what = f"{type(self).__name__} is the share that is left"
            raise PassError(what, expected="a number in (0, 1]", found=repr(self.share))

    @abstractmethod
    def cost(self, costs: Costs, groups: Sequence[Group], left: Remaining) -> float:
        """The cost with so many indices left, in units of the target's own."""

    def __str__(self) -> str:
        return f"{self.share:g} of {self.what}"


@dataclass(frozen=True)
class Channels(Target):
    """The share of indices that are left, over all axes that can shrink: channels, heads and experts alike."""

    what: ClassVar[str] = "channels"

    def cost(self, costs: Costs, groups: Sequence[Group], left: Remaining) -> float:
        """The number of indices."""
        return sum(left.size(group.leaf) for group in groups)


@dataclass(frozen=True)
class Parameters(Target):
    """The share of trainable values."""

    what: ClassVar[str] = "parameters"

    def cost(self, costs: Costs, groups: Sequence[Group], left: Remaining) -> float:
        """The number of values."""
        return costs.parameters(left)


@dataclass(frozen=True)
class Macs(Target):
    """The share of multiply-accumulates."""

    what: ClassVar[str] = "MACs"

    def cost(self, costs: Costs, groups: Sequence[Group], left: Remaining) -> float:
        """The number of multiply-accumulates."""
        return costs.macs(left)


@dataclass(frozen=True)
class Bytes(Target):
    """The share of bytes that parameters take."""

    what: ClassVar[str] = "parameter bytes"

    def cost(self, costs: Costs, groups: Sequence[Group], left: Remaining) -> float:
        """The number of bytes."""
        return costs.parameter_bytes(left)


LatencyModel = Callable[[Costs, Remaining], float]
"""Seconds that a program takes on some machine with so many indices left."""


@dataclass(frozen=True)
class Latency(Target):
    """The share of time on a target.

    table: what layers cost, `LayerTable`; or a finer model of that time, which `tersor.latency_table` measures.
    """

    what: ClassVar[str] = "latency"

    table: LayerTable | LatencyModel | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.table is None:
            raise PassError(
                "Latency needs a table of what operators cost", hint="table=ts.latency_table(program, target)"
            )

    def cost(self, costs: Costs, groups: Sequence[Group], left: Remaining) -> float:
        """Seconds by the table."""
        assert self.table is not None
        return self.table(costs, left)
