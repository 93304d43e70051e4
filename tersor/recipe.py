"""Recipes: a readable list of passes with their options, checked against each pass's own dataclass.

passes:
  - canonicalize
  - quantize: {scheme: int8, observer: mse}
"""

from __future__ import annotations

import dataclasses
import enum
import inspect
import sys
import types
import typing
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from tersor.ir.errors import RecipeError, TersorError
from tersor.ir.program import Program
from tersor.ir.quantization import SCHEMES, Scheme
from tersor.ir.registry import unknown
from tersor.ir.sparsity import PATTERNS, Channel, Pattern
from tersor.passes.base import Pass, snake_case
from tersor.passes.registry import PASSES

from .recipe_data import BOUND, GIVEN, Materials, bind

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

READY = Path(__file__).parent / "recipes"
"""The folder of ready-made recipes, which are known by the name of their file."""

_ENTRIES = ("passes", "name", "description", "target", "loss", "metric", "calibration")
"""What a recipe may hold. target, loss, metric: what it is meant for, where nothing else is given. calibration: what is
made where none is given, `synthesized` from batch norms or the `example`."""


class _Loader(yaml.SafeLoader):
    """YAML without code, and without a key given twice."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        """The mapping. Raises ConstructorError on a key that is given twice, of which YAML would keep the last."""
        seen: set[Any] = set()
        for key_node, _ in node.value:
            key = self.construct_object(key_node, deep=True)
            if key in seen:
                raise yaml.constructor.ConstructorError(None, None, f"{key!r} is given twice", key_node.start_mark)
            seen.add(key)
        return super().construct_mapping(node, deep)


def ready_recipes() -> list[str]:
    """The names of the ready-made recipes."""
    return sorted(path.stem for path in READY.glob("*.yaml"))


def load_recipe(
    where: str | Path,
    calibration: Iterable[Any] | None = None,
    *,
    data: Iterable[Any] | None = None,
    loss: Callable[..., Any] | str | None = None,
    metric: Callable[..., Any] | str | None = None,
    validation: Iterable[Any] | None = None,
    teacher: Any = None,
) -> list[Pass]:
    """Read a recipe: a YAML or TOML file, or the name of a ready-made one.

    calibration, data, loss, metric, validation, teacher: what passes are given, each where it takes it; see
        `Materials`. The loss that the recipe itself names is taken where none is given. A metric with validation data
        decides which state of a training is kept, so a recipe that was found without one replays without one.

    Raises RecipeError where the file is missing or malformed, or a pass, option or value is not known.
    """
    recipe = read_recipe(where)
    materials = Materials(calibration, data, loss, metric, validation, teacher)
    path = recipe_file(where)
    return build_passes(recipe, calibration, str(path), materials, _lines(path))


def read_recipe(where: str | Path) -> Any:
    """What a recipe's file holds, its passes not yet built. Raises RecipeError where it cannot be read."""
    return _read(recipe_file(where))


def recipe_file(where: str | Path) -> Path:
    """The file of a recipe: itself, or that of a ready-made one. Raises RecipeError where the name is not known."""
    path = Path(where)
    if path.suffix in (".yaml", ".yml", ".toml"):
        return path
    if str(where) not in ready_recipes():
        raise unknown("recipe", str(where), ready_recipes())
    return READY / f"{where}.yaml"


def build_passes(
    recipe: Any,
    calibration: Iterable[Any] | None = None,
    where: str = "recipe",
    materials: Materials | None = None,
    lines: Sequence[Mapping[str, str]] = (),
) -> list[Pass]:
    """The passes of a recipe that was read already. lines: where passes and their options stand. Raises RecipeError."""
    materials = materials or Materials(calibration)
    if not isinstance(recipe, Mapping) or not isinstance(recipe.get("passes"), list):
        raise RecipeError(f"{where}: not a recipe", expected="a mapping with a list of passes under `passes`")
    extra = sorted(set(recipe) - set(_ENTRIES))
    if extra:
        raise unknown(f"entry of a recipe ({where})", str(extra[0]), list(_ENTRIES))
    materials = dataclasses.replace(materials, loss=materials.loss or recipe.get("loss"))
    materials = _with_inputs(materials, recipe.get("calibration"), where)
    found = []
    for index, entry in enumerate(recipe["passes"]):
        place = f"{where}, pass {index + 1}"
        known = lines[index] if index < len(lines) else {}
        at = {option: f"{place}, {line}" for option, line in known.items()}
        found.append(bind(_build(entry, at.get("", place), at), materials, place))
    return found


def _lines(path: Path) -> list[dict[str, str]]:
    """For each pass of a YAML file the line and column where it begins, under no name, and of its options."""
    if path.suffix == ".toml":
        return []
    document = yaml.compose(path.read_text(encoding="utf-8"), Loader=_Loader)
    entries = {str(key.value): value for key, value in document.value} if isinstance(document, yaml.MappingNode) else {}
    passes = entries.get("passes")
    return [_lines_of(entry) for entry in passes.value] if isinstance(passes, yaml.SequenceNode) else []


def _lines_of(entry: yaml.Node) -> dict[str, str]:
    options = entry.value[0][1] if isinstance(entry, yaml.MappingNode) and entry.value else None
    keys = [key for key, _ in options.value] if isinstance(options, yaml.MappingNode) else []
    marks = {"": entry.start_mark, **{str(key.value): key.start_mark for key in keys}}
    return {name: f"line {mark.line + 1}, column {mark.column + 1}" for name, mark in marks.items()}


def _with_inputs(materials: Materials, kind: Any, where: str) -> Materials:
    """Calibration data where none is given: from training data, or made as the recipe says."""
    from .inputs import KINDS, from_training, made

    if kind is not None and kind not in KINDS:
        raise unknown(f"calibration ({where})", str(kind), list(KINDS))
    if materials.calibration is not None or not isinstance(materials.teacher, Program):
        return materials
    if materials.data is not None:
        return dataclasses.replace(materials, calibration=from_training(materials.teacher, materials.data))
    return materials if kind is None else dataclasses.replace(materials, calibration=made(kind, materials.teacher))


def _read(path: Path) -> Any:
    try:
        text = path.read_text(encoding="utf-8")
        return tomllib.loads(text) if path.suffix == ".toml" else yaml.load(text, _Loader)
    except OSError as error:
        raise RecipeError(f"{path} cannot be read: {error.strerror}") from error
    except (yaml.YAMLError, tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        found = " ".join(str(error).replace('in "<unicode string>", ', "").split())
        raise RecipeError(f"{path} is malformed", found=found) from error


def _build(entry: Any, where: str, lines: Mapping[str, str] = types.MappingProxyType({})) -> Pass:
    """A pass. lines: where its options stand, by name."""
    name, options = entry, dict[str, Any]()
    if isinstance(entry, Mapping) and len(entry) == 1:
        ((name, options),) = entry.items()
        options = {} if options is None else options
    if not isinstance(name, str) or not isinstance(options, Mapping):
        raise RecipeError(f"{where}: not a pass", expected="`name`, or `name: {option: value}`", found=repr(entry))
    try:
        kind = PASSES.find(name)
    except TersorError as error:
        error.within(where)
        raise
    fields = {field.name: field for field in dataclasses.fields(kind)}
    hints = typing.get_type_hints(kind)
    values: dict[str, Any] = {}
    for option, value in options.items():
        at = lines.get(str(option), where)
        if option not in fields or option in BOUND:
            raise unknown(f"option of {name} ({at})", str(option), [f for f in fields if f not in BOUND])
        values[option] = convert(value, hints[option], f"{at}, {name}.{option}")
    try:
        return kind(**values)
    except (TypeError, ValueError) as error:
        raise RecipeError(f"{where}, {name}: {error}") from error


def convert(value: Any, hint: Any, where: str) -> Any:
    """A value from a file as the type that a field declares. Raises RecipeError."""
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin in (typing.Union, types.UnionType):
        return _union(value, arguments, where)
    if origin is tuple and Ellipsis not in arguments:
        return _pair(value, arguments, where)
    if origin is not None and isinstance(origin, type) and issubclass(origin, Mapping):
        return _mapping(value, arguments, where)
    if isinstance(hint, type) and issubclass(hint, Pass):
        return _inner(value, hint, where)
    if origin is tuple:
        items = value if isinstance(value, list) else [value]
        return tuple(convert(item, arguments[0], where) for item in items)
    if hint is Scheme and isinstance(value, str):
        if value not in SCHEMES:
            raise unknown(f"scheme ({where})", value, sorted(SCHEMES))
        return SCHEMES[value]
    if isinstance(hint, type) and issubclass(hint, enum.Enum):
        if value not in [member.value for member in hint]:
            raise unknown(f"{hint.__name__} ({where})", str(value), [str(member.value) for member in hint])
        return hint(value)
    if choices := _choices(hint):
        return _chosen(value, choices, hint.__name__, where)
    if dataclasses.is_dataclass(hint) and isinstance(value, Mapping):
        return _dataclass(value, hint, where)
    return _plain(value, hint, where)


def _pair(value: Any, hints: tuple[Any, ...], where: str) -> Any:
    """A tuple of so many, each of its own type."""
    if not isinstance(value, list) or len(value) != len(hints):
        raise RecipeError(f"{where}: wrong length", expected=f"a list of {len(hints)}", found=repr(value))
    return tuple(convert(item, hint, where) for item, hint in zip(value, hints, strict=True))


def _mapping(value: Any, hints: tuple[Any, ...], where: str) -> Any:
    if not isinstance(value, Mapping):
        raise RecipeError(f"{where}: wrong type", expected="a mapping", found=repr(value))
    return {convert(key, hints[0], where): convert(item, hints[1], f"{where}.{key}") for key, item in value.items()}


def _inner(value: Any, hint: type[Pass], where: str) -> Pass:
    """A pass inside of another."""
    step = _build(value, where)
    if not isinstance(step, hint):
        raise RecipeError(f"{where}: {step.name} cannot stand here", expected=snake_case(hint.__name__))
    return step


def _choices(hint: Any) -> dict[str, Any]:
    """The classes by name that a field of an abstract class takes: criteria, targets, patterns of zeros."""
    if hint is Pattern:
        return {name: kind for name, kind in PATTERNS.items() if kind is not Channel}
    abstract = isinstance(hint, type) and inspect.isabstract(hint) and dataclasses.is_dataclass(hint)
    if not abstract or issubclass(hint, Pass):
        return {}
    found, stack = dict[str, Any](), [hint]
    while stack:
        for kind in stack.pop().__subclasses__():
            stack.append(kind)
            if not inspect.isabstract(kind):
                found[snake_case(kind.__name__)] = kind
    return found


def _chosen(value: Any, choices: Mapping[str, Any], what: str, where: str) -> Any:
    """`name`, `name: first option`, or `name: {option: value}`. Raises RecipeError."""
    name, options = value, dict[str, Any]()
    if isinstance(value, Mapping) and len(value) == 1:
        ((name, options),) = value.items()
    if not isinstance(name, str) or name not in choices:
        raise unknown(f"{what} ({where})", str(name), sorted(choices))
    if not isinstance(options, Mapping):
        options = {dataclasses.fields(choices[name])[0].name: options}
    return _dataclass(options, choices[name], where)


def _union(value: Any, alternatives: tuple[Any, ...], where: str) -> Any:
    """The value as the first of the types that takes it; the error of the first where none does."""
    if value is None and type(None) in alternatives:
        return None
    if value == GIVEN and Program in alternatives:
        return GIVEN
    errors = []
    for hint in alternatives:
        try:
            return convert(value, hint, where)
        except RecipeError as error:
            errors.append(error)
    raise errors[0]


def _dataclass(value: Mapping[str, Any], hint: Any, where: str) -> Any:
    hints = typing.get_type_hints(hint)
    names = [field.name for field in dataclasses.fields(hint)]
    for key in value:
        if key not in names:
            raise unknown(f"field of {hint.__name__} ({where})", str(key), names)
    try:
        return hint(**{key: convert(item, hints[key], f"{where}.{key}") for key, item in value.items()})
    except (TypeError, ValueError) as error:
        raise RecipeError(f"{where}: {error}") from error


def _plain(value: Any, hint: Any, where: str) -> Any:
    if hint is float:
        value = _number(value)
    if hint in (bool, int, float, str):
        if type(value) is not hint:
            raise RecipeError(f"{where}: wrong type", expected=hint.__name__, found=repr(value))
        return value
    raise RecipeError(f"{where} cannot be given in a recipe", found=repr(value), hint="build the pass in Python")


def _number(value: Any) -> Any:
    """A float for a whole number, and for text such as 1e-3, which YAML does not take for a number."""
    if isinstance(value, bool) or not isinstance(value, int | str):
        return value
    try:
        return float(value)
    except ValueError:
        return value
