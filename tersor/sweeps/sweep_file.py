"""A sweep as a file: what to try, on what, judged by what.

model: zoo:resnet
data: zoo:batches
recipe: int8
grid:
  quantize.observer: [min_max, mse, percentile]
"""

from __future__ import annotations

import dataclasses
import typing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tersor.ir.errors import RecipeError
from tersor.ir.registry import unknown
from tersor.passes.training.options import Better

from ..recipe import convert, read_recipe
from .settings import Grid

_WHAT = ("recipe", "grid", "recipes")
"""Read as they stand; the rest has types."""


@dataclass(frozen=True)
class SweepFile:
    """What a file says. recipe with grid: a grid, or a list of option mappings; recipes: a list, or names to recipes.

    The rest is as for `sweep`; what the command line says goes first.
    """

    recipe: Any = None
    grid: Any = None
    recipes: Any = None
    model: str | None = None
    dynamic: tuple[str, ...] = ()
    data: str | None = None
    batches: int = 64
    metric: str | None = None
    better: Better = Better.HIGHER
    target: str | None = None
    latency: bool = False
    costs: tuple[str, ...] = ()
    description: str = ""

    @property
    def tries(self) -> Any:
        """What to try. Raises RecipeError where the file does not say it, or says it twice."""
        if (self.grid is None) is (self.recipes is None) or (self.grid is None) is not (self.recipe is None):
            said = ", ".join(name for name in _WHAT if getattr(self, name) is not None)
            raise RecipeError(
                "not clear what to try", expected="`recipe` and `grid`, or `recipes`", found=said or "none"
            )
        return self.recipes if self.grid is None else Grid(self.recipe, self.grid)


def load_sweep(path: str | Path) -> SweepFile:
    """Read a YAML or TOML file. Raises RecipeError where it is malformed."""
    if Path(path).suffix not in (".yaml", ".yml", ".toml"):
        raise RecipeError(f"{path} is no file of a sweep", expected="a .yaml or .toml file")
    return sweep_from(read_recipe(path), str(path))


def sweep_from(data: Any, path: str) -> SweepFile:
    """A sweep from what a file holds. Raises RecipeError where it is malformed."""
    if not isinstance(data, dict):
        raise RecipeError(
            f"{path} is no sweep", expected="a mapping with `recipe` and `grid`", found=type(data).__name__
        )
    names = [field.name for field in dataclasses.fields(SweepFile)]
    hints = typing.get_type_hints(SweepFile)
    values = {}
    for key, value in data.items():
        if key not in names:
            raise unknown(f"entry of a sweep ({path})", str(key), names)
        values[key] = value if key in _WHAT else convert(value, hints[key], f"{path}, {key}")
    return SweepFile(**values)
