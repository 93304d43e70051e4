"""Channel counts by name: how many indices of each axis stay, said outright instead of by a share."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence

from tersor.ir.errors import PassError

from .axes import Axis
from .flow import Kind
from .groups import Group

_PLAIN = (Kind.WIDTH, Kind.RESIDUAL)


def named(every: Sequence[Group]) -> dict[str, Group]:
    """The groups of a program by name: the first parameter that an axis cuts, as `stem.weight`.

    What is no plain width says so, as `attention.q.weight (heads)`; the second of one name is `NAME #2`.
    """
    seen: Counter[str] = Counter()
    found = {}
    for group in every:
        name = group.name if group.kind in _PLAIN else f"{group.name} ({group.kind.value})"
        seen[name] += 1
        found[name if seen[name] == 1 else f"{name} #{seen[name]}"] = group
    return found


def by_axis(
    counts: Mapping[str, int], every: Sequence[Group], chosen: Sequence[Group], needs: Mapping[Axis, int]
) -> dict[Axis, int]:
    """How many indices stay of each chosen axis, those that are not named all of theirs.

    needs: how many of an axis operators need at least. Raises PassError for a name or a count that is not possible.
    """
    groups = named(every)
    for name, count in counts.items():
        if name not in groups or not any(group is groups[name] for group in chosen):
            known = ", ".join(f"{known} ({group.size})" for known, group in list(groups.items())[:6])
            raise PassError(f"{name!r} is no axis that can shrink here", expected=f"of {known}")
        least, most = needs[groups[name].leaf.find()], groups[name].size
        given: object = count  # of a recipe, whose types nobody checks
        if type(given) is not int or not least <= count <= most:
            raise PassError(f"{name} cannot have that many indices", expected=f"{least} to {most}", found=repr(given))
    return {group.leaf: counts.get(name, group.size) for name, group in groups.items() if group in chosen}
