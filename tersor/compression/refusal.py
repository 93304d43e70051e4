"""What is said where a budget cannot be met: what was reached, what stopped it, and what would get further."""

from __future__ import annotations

from collections.abc import Sequence

from tersor.ir.errors import TersorError
from tersor.passes.preferences import Preferences
from tersor.passes.training.options import Better

from .attempts import Attempt
from .budget import is_enough
from .limits import BudgetError, Limits


def refusal(
    tried: Sequence[Attempt],
    limits: Limits,
    floor: float | None,
    better: Better,
    labelled: bool,
    likes: Preferences,
) -> BudgetError:
    """The error, from all that was tried. labelled: whether there was data to train on."""
    inside = [attempt for attempt in tried if attempt.measured is not None and limits.excess(attempt.measured) <= 1]
    scored = [attempt for attempt in inside if attempt.metric is not None]
    if floor is not None and scored:
        return _below(tried, scored, limits, floor, better, labelled, likes)
    return _too_large(tried, limits)


def _below(
    tried: Sequence[Attempt],
    scored: Sequence[Attempt],
    limits: Limits,
    floor: float,
    better: Better,
    labelled: bool,
    likes: Preferences,
) -> BudgetError:
    """Plans were small enough, and none was good enough."""
    sign = 1 if better is Better.HIGHER else -1
    best = max(scored, key=lambda attempt: sign * (attempt.metric or 0.0))
    good = [a for a in tried if a.measured and a.metric is not None and is_enough(a.metric, floor, better)]
    nearest = min(good, key=lambda a: limits.excess(a.measured), default=None) if limits else None  # type: ignore[arg-type]  # good ones are measured
    found = f"{best.metric:.4g} at best, by: {best.plan.words(likes)}"
    ways = [f"a floor of {best.metric:.4g}"]
    if nearest is not None and nearest.measured is not None:
        times = f"{limits.excess(nearest.measured):.3g} times the limit"
        found += f"; the floor is kept at {times}, with {nearest.metric:.4g}, by: {nearest.plan.words(likes)}"
        ways.append(f"limits of {limits.relaxed(nearest.measured)}")
    elif limits:
        ways.append("larger limits")
    ways.append("more epochs or more data" if labelled else "data= and loss= to train with")
    return BudgetError(
        f"no plan keeps the floor {f'within {limits}' if limits else 'at all'}",
        expected=f"a metric of {floor:.4g}; the model itself has {limits.baseline.metric:.4g}",
        found=found,
        hint=", or ".join(ways),
    )


def _too_large(tried: Sequence[Attempt], limits: Limits) -> BudgetError:
    """Nothing that was tried was small enough."""
    measured = [attempt.measured for attempt in tried if attempt.measured is not None]
    failed = next((attempt for attempt in tried if attempt.failure is not None), None)
    if not measured and failed is not None and failed.failure is not None:
        raise BudgetError(
            "no plan can be carried out on this model",
            expected=failed.failure.expected,
            found=failed.error.splitlines()[0],
            hint=failed.failure.hint,
        ) from failed.failure
    least = {what: min((found.cost(what) or 0.0 for found in measured), default=0.0) for what in limits.amounts}
    found = ", ".join(f"{what} {limits.told(what, cost)}" for what, cost in least.items())
    failures = [_why(attempt.failure) for attempt in tried if attempt.failure is not None]
    nearest = min(measured, key=limits.excess, default=None)
    relaxed = "" if nearest is None else f"relax to {limits.relaxed(nearest)}, or "
    return BudgetError(
        "no plan is so small on this target",
        expected=", ".join(f"{what} {limits.told(what, amount)}" for what, amount in limits.amounts.items()),
        found=f"{found} at least{f'; {failures[-1]}' if failures else ''}",
        hint=f"{relaxed}begin from a smaller model (student=)",
    )


def _why(failure: TersorError) -> str:
    """What went wrong, and what would have been possible."""
    return failure.what if failure.expected is None else f"{failure.what} ({failure.expected})"
