"""What a recipe does not hold and its passes need: data, a loss, a metric, the model that it starts from."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from tersor.ir.errors import RecipeError
from tersor.ir.program import Program
from tersor.ir.registry import unknown
from tersor.passes.base import Pass

from .inputs import Seeded

GIVEN = "given"
"""What a recipe writes for the teacher: the program that the recipe starts from."""

BOUND = ("calibration", "batches", "loss", "metric", "validation", "evaluate")
"""Fields that are given when a recipe is loaded, by name, and are not options in it."""


def cross_entropy(outputs: Any, targets: Tensor) -> Tensor:
    """The mean over [batch, classes], or over [batch, tokens, classes]; of a dict or record, of its `logits`."""
    logits = _logits(outputs)
    return nn.functional.cross_entropy(logits.flatten(0, -2), targets.flatten())


def accuracy(outputs: Any, targets: Tensor) -> float:
    """The share of rows whose largest logit is the target's."""
    return float((_logits(outputs).argmax(-1) == targets).float().mean())


def _logits(outputs: Any) -> Tensor:
    found = outputs["logits"] if isinstance(outputs, Mapping) else getattr(outputs, "logits", outputs)
    found = found[0] if isinstance(found, tuple | list) else found
    if not isinstance(found, Tensor):
        raise RecipeError("the outputs hold no logits", found=type(found).__name__, hint="a loss of your own")
    return found


LOSSES: dict[str, Callable[..., Tensor]] = {"cross_entropy": cross_entropy, "mse": nn.functional.mse_loss}
METRICS: dict[str, Callable[..., Any]] = {"accuracy": accuracy}


def by_name(what: str, given: Any, known: Mapping[str, Any]) -> Any:
    """A function that is given as itself, or as the name of a known one. Raises RecipeError."""
    if not isinstance(given, str):
        return given
    if given not in known:
        raise unknown(what, given, sorted(known))
    return known[given]


@dataclass(frozen=True)
class Materials:
    """What the passes of a recipe get.

    calibration: batches, each what the model is called with. data: batches with what the loss takes as well.
    loss: of outputs and targets, or the name of one: `cross_entropy`, `mse`. metric: the same on `validation`, batches
        like `data`: `accuracy`. teacher: the program that the recipe starts from, for passes that imitate it.
    """

    calibration: Iterable[Any] | None = None
    data: Iterable[Any] | None = None
    loss: Callable[..., Tensor] | str | None = None
    metric: Callable[..., Any] | str | None = None
    validation: Iterable[Any] | None = None
    teacher: Program | nn.Module | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "loss", by_name("loss", self.loss, LOSSES))
        object.__setattr__(self, "metric", by_name("metric", self.metric, METRICS))


def bind(step: Pass, materials: Materials, where: str) -> Pass:
    """The pass, and those inside of it, with their data. Raises RecipeError where a teacher is missing."""
    bound: Pass = _bound(step, materials, where)
    return bound


def _bound(value: Any, materials: Materials, where: str) -> Any:
    if isinstance(value, tuple):
        found = tuple(_bound(item, materials, where) for item in value)
        return value if all(new is old for new, old in zip(found, value, strict=True)) else found
    if isinstance(value, torch.Tensor | Program) or not dataclasses.is_dataclass(value) or isinstance(value, type):
        return value
    names = [field.name for field in dataclasses.fields(value) if field.init]
    changes: dict[str, Any] = {}
    for name in names:
        old = getattr(value, name)
        new = _material(name, old, "loss" in names, materials, where)
        if name == "batches" and new is not None and "loss" in names and not isinstance(value, Pass):
            new = Seeded(new)  # a criterion, which no training loop seeds
        new = _bound(old, materials, where) if new is None else new
        if new is not old:
            changes[name] = new
    return dataclasses.replace(value, **changes) if changes else value


def _material(name: str, old: Any, trains: bool, materials: Materials, where: str) -> Any:
    """What a field gets; None where it keeps what it has."""
    if isinstance(old, str) and name == "teacher" and old == GIVEN:
        if materials.teacher is None:
            raise RecipeError(f"{where} learns from the model that the recipe starts from", hint="teacher=program")
        return materials.teacher
    if old is not None or name not in BOUND:
        return None
    batches = materials.data if trains else materials.calibration
    found = {
        "batches": batches,
        "calibration": materials.calibration,
        "loss": materials.loss,
        "metric": materials.metric if materials.validation is not None else None,
        "validation": materials.validation if materials.metric is not None else None,
    }
    return found.get(name)
