"""What a compressed model may cost, and how good it has to stay."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from tersor.ir.errors import RecipeError
from tersor.passes.training.options import Better

Amount = float | int | str
"""A number in the natural unit, or text: `0.5x` and `50%` are shares of what there was, `8ms`, `2MB`, `3M` amounts."""

_TEXT = re.compile(r"\s*([0-9.]+(?:e[+-]?\d+)?)\s*([A-Za-z%]*)\s*", re.IGNORECASE)
_SHARES = {"x": 1.0, "%": 0.01}
_UNITS: Mapping[str, Mapping[str, float]] = {
    "latency": {"": 1.0, "s": 1.0, "ms": 1e-3, "us": 1e-6},
    "bytes": {"": 1.0, "b": 1.0, "kb": 1e3, "mb": 1e6, "gb": 1e9, "kib": 2**10, "mib": 2**20, "gib": 2**30},
    "macs": {"": 1.0, "k": 1e3, "m": 1e6, "g": 1e9},
    "floor": {"": 1.0},
}


@dataclass(frozen=True)
class Limit:
    """An amount, or a share of what there was."""

    amount: float
    is_share: bool = False

    @classmethod
    def of(cls, what: str, given: Amount) -> Limit:
        """Read a number or a text. Raises RecipeError."""
        found = None if isinstance(given, bool) else _TEXT.fullmatch(str(given))
        units = {**_SHARES, **_UNITS[what]}
        unit = "" if found is None else found[2].lower()
        try:
            amount = float(found[1]) if found else math.nan
        except ValueError:
            amount = math.nan
        if not math.isfinite(amount) or unit not in units or (amount <= 0 and what != "floor"):
            raise RecipeError(
                f"{what} is no limit",
                expected=f"more than 0: a number, or text such as 0.5x, 50% or 2{[u for u in _UNITS[what] if u][-1]}"
                if what != "floor"
                else "a score, or a share of the model's own, as 0.99x",
                found=repr(given),
            )
        if unit in _SHARES and amount * units[unit] > 1 and what != "floor":
            raise RecipeError(f"{what} is a share of what there is", expected="at most 1x", found=repr(given))
        return cls(amount * units[unit], unit in _SHARES)

    def within(self, baseline: float) -> float:
        """The amount, where there was so much."""
        return self.amount * baseline if self.is_share else self.amount


@dataclass(frozen=True)
class Budget:
    """What compression is to reach: any mix.

    latency: on the target, in seconds. bytes: of parameters in storage. macs: multiply-accumulates. Each is a number,
        or a text: `"0.5x"` and `"50%"` are shares of the model given; `"8ms"`, `"2MB"` and `"3M"` amounts. For a target
        that takes no float model, shares of latency are of the model quantized as the target likes it.
    floor: the metric at least (at most, where lower is better): a number, or a share of the model's own, `"0.99x"`.
        With nothing but a floor, the model is compressed as far as that allows.

    Raises RecipeError on what is no limit.
    """

    latency: Amount | None = None
    bytes: Amount | None = None
    macs: Amount | None = None
    floor: Amount | None = None

    def __post_init__(self) -> None:
        for what in _UNITS:
            self.limit(what)

    def limit(self, what: str) -> Limit | None:
        """The limit of that name, read."""
        given = getattr(self, what)
        return None if given is None else Limit.of(what, given)

    def costs(self) -> Iterator[tuple[str, Limit]]:
        """The limits on costs that there are."""
        for what in ("latency", "bytes", "macs"):
            limit = self.limit(what)
            if limit is not None:
                yield what, limit

    def __str__(self) -> str:
        named = [f"{what} {getattr(self, what)}" for what in _UNITS if getattr(self, what) is not None]
        return ", ".join(named) or "none"


def is_enough(metric: float, floor: float | None, better: Better) -> bool:
    """Whether a metric keeps the floor."""
    if floor is None:
        return True
    return metric >= floor if better is Better.HIGHER else metric <= floor
