"""What a budget allows, in the amounts in which costs are measured."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property

from tersor.ir.errors import PassError

from .budget import Budget
from .measurement import Measured


class BudgetError(PassError):
    """The budget cannot be met: it says what was reached, what stopped it, and what to relax."""


@dataclass(frozen=True)
class Limits:
    """The limits on costs of a budget. baseline: what shares are of.

    Raises BudgetError where a limit says nothing on the target.
    """

    budget: Budget
    baseline: Measured

    def __post_init__(self) -> None:
        limit = self.budget.limit("latency")
        if limit is not None and not limit.is_share and self.baseline.seconds is None:
            raise BudgetError(
                f"the target counts {self.baseline.unit}, which says nothing of seconds",
                found=f"latency={self.budget.latency!r}",
                hint='a share, as latency="0.5x"',
            )

    @cached_property
    def amounts(self) -> Mapping[str, float]:
        """By name, in the units of `Measured`."""
        found = {}
        for what, limit in self.budget.costs():
            before = self.baseline.cost(what)
            assert before is not None  # where a limit is on latency it was measured
            seconds = self.baseline.seconds if what == "latency" and not limit.is_share else None
            found[what] = limit.within(before) / (seconds or 1.0)
        return found

    def __bool__(self) -> bool:
        return bool(self.amounts)

    def __str__(self) -> str:
        return ", ".join(f"{what} {getattr(self.budget, what)}" for what in self.amounts) or "the budget"

    def shares(self, measured: Measured) -> dict[str, float]:
        """How much of each limit something takes."""
        return {what: (measured.cost(what) or 0.0) / limit for what, limit in self.amounts.items()}

    def excess(self, measured: Measured) -> float:
        """How many times too much it takes, of the limit that it breaks most."""
        return max(self.shares(measured).values(), default=0.0)

    def broken(self, measured: Measured) -> str:
        """The limit that it breaks most."""
        shares = self.shares(measured)
        return max(shares, key=lambda what: shares[what])

    def told(self, what: str, amount: float) -> str:
        """An amount of a cost, and what share it is of what there was."""
        before = self.baseline.cost(what)
        share = f" ({amount / before:.3g}x)" if before else ""
        unit = f" {self.baseline.unit}" if what == "latency" else ""
        return f"{amount:.4g}{unit}{share}"

    def relaxed(self, measured: Measured) -> str:
        """The limits that something would meet: those that it breaks, as it takes them."""
        over = {what: share for what, share in self.shares(measured).items() if share > 1}
        parts = []
        for what in over:
            cost, before = measured.cost(what) or 0.0, self.baseline.cost(what) or 1.0
            parts.append(f'{what}="{_up(cost / before)}x"')
        return ", ".join(parts)


def _up(share: float) -> str:
    """Three digits, not less."""
    return f"{share * 1.005:.3g}"
