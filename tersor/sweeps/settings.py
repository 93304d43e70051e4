"""What a sweep tries: recipes with options laid over them, or lists of passes, each with a name."""

from __future__ import annotations

import copy
import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch import nn

from tersor.ir.errors import RecipeError
from tersor.ir.registry import unknown
from tersor.passes.base import Pass

from ..recipe import build_passes, read_recipe
from ..recipe_data import Materials

Recipe = Mapping[str, Any]


@dataclass(frozen=True)
class Setting:
    """One thing to try. work: a recipe that was read, or passes; options: what sets it apart, in words."""

    name: str
    work: Recipe | tuple[Pass, ...]
    options: Mapping[str, str] = field(default_factory=dict)

    @property
    def recipe(self) -> Recipe | None:
        """The recipe; None for passes that were built in Python."""
        return self.work if isinstance(self.work, Mapping) else None


@dataclass(frozen=True)
class Grid:
    """A recipe with options to lay over it.

    recipe: a ready-made name, a file, or a mapping with `passes`.
    options: for each option its values, of which every combination is tried; or a list of mappings, each one try. An
        option is written `pass.option`, `pass.option.field`; `pass#2.option` is the second pass of that name. A pass
        alone stands for all its options: null leaves the pass out, true keeps it as it is.

        Grid("int8", {"quantize.scheme": ["int8", "int4"], "quantize.observer": ["mse", "entropy"]})  # 4 tries
    """

    recipe: str | Path | Recipe
    options: Mapping[str, Sequence[Any]] | Sequence[Mapping[str, Any]]

    def settings(self) -> tuple[Setting, ...]:
        """Every try, in order. Raises RecipeError where an option does not fit the recipe."""
        base = _recipe(self.recipe)
        chosen = [_laid(base, values) for values in self._combinations()]
        if not chosen:
            raise RecipeError("a sweep needs something to try", found=repr(self.options))
        return tuple(chosen)

    def _combinations(self) -> list[Mapping[str, Any]]:
        if not isinstance(self.options, Mapping):
            for entry in self.options:
                if not isinstance(entry, Mapping):
                    raise RecipeError("not a try", expected="a mapping of options to values", found=repr(entry))
            return list(self.options)
        for option, values in dict[str, Any](self.options).items():
            if isinstance(values, str | Mapping) or not isinstance(values, Sequence) or not values:
                raise RecipeError(
                    f"{option}: not values to try", expected="a list with one at least", found=repr(values)
                )
        products = itertools.product(*self.options.values())
        return [dict(zip(self.options, values, strict=True)) for values in products]


def settings_of(tries: Any) -> tuple[Setting, ...]:
    """The settings of a Grid, of a list of recipes or lists of passes, or of a mapping from names to them.

    Raises RecipeError for what is none of these, and for names that are given twice.
    """
    if isinstance(tries, Grid):
        found = tries.settings()
    elif isinstance(tries, Mapping):
        found = tuple(_setting(str(name), work) for name, work in tries.items())
    elif isinstance(tries, Sequence) and not isinstance(tries, str):
        found = tuple(_setting("", work) for work in tries)
    else:
        raise RecipeError("not a sweep", expected="a Grid, a list, or a mapping of names", found=type(tries).__name__)
    if not found:
        raise RecipeError("a sweep needs something to try", found="nothing")
    return _named_apart(found)


def check(settings: Sequence[Setting], data: bool) -> None:
    """Build every recipe once, so that a wrong option is found before anything runs. Raises RecipeError."""
    for setting in settings:
        if setting.recipe is not None:
            materials = Materials(() if data else None, teacher=nn.Identity())
            build_passes(setting.recipe, materials.calibration, setting.name, materials)


def laid_over(recipe: Recipe, option: str, value: Any) -> Recipe:
    """The recipe with one option changed. Raises RecipeError where the recipe has no such pass."""
    path = option.split(".")
    entries = list(recipe["passes"])
    place = _place(entries, path[0])
    name, options = _parts(entries[place])
    if len(path) == 1:
        changed = _whole(entries[place], name, option, value)
        entries[place : place + 1] = [] if changed is None else [changed]
    else:
        inner = options
        for key in path[1:-1]:
            if not isinstance(inner.setdefault(key, {}), dict):
                inner[key] = {}
            inner = inner[key]
        inner[path[-1]] = value
        entries[place] = {name: options}
    return {**recipe, "passes": entries}


def _whole(entry: Any, name: str, option: str, value: Any) -> Any:
    """A whole pass: left out, kept, or with other options."""
    if value is None or value is False:
        return None
    if value is True:
        return entry
    if not isinstance(value, Mapping):
        expected = "null (without the pass), true (as it is), or a mapping of its options"
        raise RecipeError(f"{option}: not a value for a whole pass", expected=expected, found=repr(value))
    return {name: dict(value)}


def _place(entries: Sequence[Any], wanted: str) -> int:
    name, _, number = wanted.partition("#")
    places = [place for place, entry in enumerate(entries) if _parts(entry)[0] == name]
    if not places:
        raise unknown("pass of the recipe", name, sorted({_parts(entry)[0] for entry in entries}))
    if not number and len(places) > 1:
        raise RecipeError(f"{name} stands {len(places)} times in the recipe", hint=f"write {name}#1, {name}#2, ...")
    if number and not (number.isdigit() and 1 <= int(number) <= len(places)):
        raise RecipeError(f"there is no {wanted} in the recipe", expected=f"{name}#1 to {name}#{len(places)}")
    return places[int(number or 1) - 1]


def _parts(entry: Any) -> tuple[str, dict[str, Any]]:
    if isinstance(entry, Mapping) and len(entry) == 1:
        ((name, options),) = entry.items()
        return str(name), copy.deepcopy(dict(options)) if isinstance(options, Mapping) else {}
    return str(entry), {}


def _laid(base: Recipe, values: Mapping[str, Any]) -> Setting:
    recipe = base
    for option in sorted(values, key=lambda option: _turn(option, values[option])):
        recipe = laid_over(recipe, str(option), values[option])
    options = {str(option): value_text(value) for option, value in values.items()}
    return Setting(_short_name(options) or "as written", recipe, options)


def _turn(option: str, value: Any) -> int:
    """Whole passes first, then options inside them; what leaves a pass out last, since options need it there."""
    if "." in option:
        return 1
    return 2 if value is None or value is False else 0


def _short_name(options: Mapping[str, str]) -> str:
    """`scheme=int8, observer=mse`; the whole option where the last word alone would be ambiguous."""
    last = [option.rpartition(".")[2] for option in options]
    shown = (word if last.count(word) == 1 else option for word, option in zip(last, options, strict=True))
    return ", ".join(f"{word}={value}" for word, value in zip(shown, options.values(), strict=True))


def value_text(value: Any) -> str:
    """A value of an option in words: `macs 0.5` for {macs: 0.5}."""
    if isinstance(value, Mapping):
        return ", ".join(f"{key} {value_text(item)}" for key, item in value.items())
    if isinstance(value, list | tuple):
        return " ".join(map(value_text, value))
    words = {None: "none", True: "yes", False: "no"}
    return words[value] if value is None or isinstance(value, bool) else str(value)


def _setting(name: str, work: Any) -> Setting:
    if isinstance(work, Setting):
        return work
    if isinstance(work, Pass):
        work = (work,)
    if isinstance(work, Sequence) and not isinstance(work, str):
        wrong = next((step for step in work if not isinstance(step, Pass)), None)
        if wrong is not None or not work:
            raise RecipeError("not a list of passes", expected="instances of tersor.Pass", found=repr(wrong or work))
        return Setting(name or ", ".join(step.name for step in work), tuple(work))
    if isinstance(work, str | Path):
        return Setting(name or Path(work).stem, read_recipe(work))
    if isinstance(work, Mapping):
        recipe = _recipe(work)
        return Setting(name or str(recipe.get("name") or recipe.get("description") or "recipe"), recipe)
    raise RecipeError("not a try", expected="a recipe or a list of passes", found=repr(work))


def _recipe(recipe: str | Path | Recipe) -> Recipe:
    found = read_recipe(recipe) if isinstance(recipe, str | Path) else recipe
    if not isinstance(found, Mapping) or not isinstance(found.get("passes"), list):
        raise RecipeError("not a recipe", expected="a mapping with a list of passes under `passes`", found=repr(found))
    return found


def _named_apart(settings: Sequence[Setting]) -> tuple[Setting, ...]:
    """Settings whose names differ: a number is added to those that share one."""
    names = [setting.name for setting in settings]
    seen: dict[str, int] = {}
    result = []
    for setting in settings:
        seen[setting.name] = seen.get(setting.name, 0) + 1
        alone = names.count(setting.name) == 1
        name = setting.name if alone else f"{setting.name} ({seen[setting.name]})"
        result.append(Setting(name, setting.work, setting.options))
    return tuple(result)
