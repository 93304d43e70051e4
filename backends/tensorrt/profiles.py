"""Optimization profiles: from the ranges of a program's dynamic dimensions to the shapes that a builder wants."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from tersor.ir.errors import LoweringError, SignatureError
from tersor.ir.program import Program
from tersor.ir.signature import Range, Signature

if TYPE_CHECKING:
    from .backend import Sizes

Profile = Mapping[str, "Sizes"]
Shape = tuple[int, ...]
Shapes = dict[str, tuple[Shape, Shape, Shape]]
"""Least, best and greatest shape of each input."""

_HEADROOM = 4
"""Where a program sets no bound, an engine takes sizes up to this many times the one it is tuned for."""


def complete(program: Program, profiles: Sequence[Profile] | None) -> list[dict[str, Sizes]]:
    """The profiles with sizes for every dynamic dimension; none where there is no such dimension.

    Raises LoweringError where a profile names what is no dynamic dimension, or sizes that the program does not take.
    """
    dims = program.signature.dims
    usual = _usual(program)
    given = [{}] if profiles is None else profiles
    for profile in given:
        for name, sizes in profile.items():
            _check(name, sizes, dims)
    return [{**usual, **profile} for profile in given] if dims else []


def shapes(signature: Signature, profile: Profile) -> Shapes:
    """What a profile means for each input that has a dynamic dimension."""
    found: Shapes = {}
    for spec in signature.inputs:
        if any(isinstance(dim, str) for dim in spec.shape):
            least, best, most = (
                tuple(_size(dim, profile, end) for dim in spec.shape) for end in ("least", "best", "most")
            )
            found[spec.name] = least, best, most
    return found


def _size(dim: int | str, profile: Profile, end: str) -> int:
    return dim if isinstance(dim, int) else int(getattr(profile[dim], end))


def _usual(program: Program) -> dict[str, Sizes]:
    from .backend import Sizes

    sizes = _example_sizes(program)
    usual = {}
    for name, span in program.signature.dims.items():
        least = max(span.low, 1)
        best = max(sizes.get(name, least), least)
        usual[name] = Sizes(least, best, best * _HEADROOM if span.high is None else span.high)
    return usual


def _example_sizes(program: Program) -> dict[str, int]:
    if program.example is None:
        return {}
    try:
        return program.signature.check(program.example)
    except SignatureError:
        return {}


def _check(name: str, sizes: Sizes, dims: Mapping[str, Range]) -> None:
    if name not in dims:
        known = ", ".join(dims) or "the program has none"
        raise LoweringError(f"{name!r} is not a dynamic dimension", expected=known, hint="trace with dynamic={...}")
    span = dims[name]
    if sizes.least < span.low or (span.high is not None and sizes.most > span.high):
        raise LoweringError(
            f"the profile of {name!r} goes beyond what the program takes",
            expected=span,
            found=f"{sizes.least}..{sizes.most}",
            hint="narrow the profile, or trace with a wider range",
        )
