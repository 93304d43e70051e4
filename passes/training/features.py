"""Values inside a model, by the paths of the modules that a user knows."""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from torch import Tensor, fx, nn

from tersor.ir.errors import TrainingError
from tersor.ir.origin import Origin
from tersor.ir.program import Program
from tersor.ir.shapes import KEY


@dataclass(frozen=True)
class Pair:
    """The output of a module of the student, and that of a module of the teacher, by their paths."""

    student: str
    teacher: str

    @classmethod
    def of(cls, given: Pair | str | tuple[str, str]) -> Pair:
        """A pair; one path stands for the same in both."""
        if isinstance(given, Pair):
            return given
        return cls(given, given) if isinstance(given, str) else cls(*given)


def module_outputs(program: Program) -> dict[str, fx.Node]:
    """The node that gives each module's output: the last that the module, or one inside of it, computed."""
    found: dict[str, fx.Node] = {}
    for node in program.graph.nodes:
        origin = Origin.of(node)
        if node.op != "call_function" or origin is None or not _is_value(node) or _is_of_parameters(node):
            continue
        parts = origin.module.split(".") if origin.module else []
        for count in range(1, len(parts) + 1):
            found[".".join(parts[:count])] = node
    return found


def _is_value(node: fx.Node) -> bool:
    value = node.meta.get(KEY)
    return isinstance(value, Tensor) and value.is_floating_point() and value.dim() >= 2


def _is_of_parameters(node: fx.Node) -> bool:
    """Whether a node computes with parameters alone, as the fake-quantize of a weight does."""
    return all(source.op == "get_attr" for source in node.all_input_nodes)


def output_of(program: Program, path: str) -> fx.Node:
    """The node that gives a module's output. Raises TrainingError with the paths that are like it."""
    outputs = module_outputs(program)
    if path not in outputs:
        raise unknown_module(path, outputs)
    return outputs[path]


def unknown_module(path: str, known: Iterable[str]) -> TrainingError:
    """The error for a module that is not there."""
    names = list(known)
    near = difflib.get_close_matches(path, names, 3) or names[:6]
    return TrainingError(f"there is no module {path!r} with an output", expected=f"such as {', '.join(near)}")


def suggest_pairs(student: Program, teacher: Program | nn.Module) -> tuple[Pair, ...]:
    """Pairs of the modules that have one name in student and teacher, and outputs of as many dimensions.

    Of a list of layers these are the layers, as `blocks.0`, `blocks.1`; elsewhere the outermost modules.
    """
    ours = module_outputs(student)
    theirs = module_outputs(teacher) if isinstance(teacher, Program) else dict.fromkeys(_paths(teacher))
    both = [path for path in ours if path in theirs and _alike(ours[path], theirs[path])]
    outermost = [path for path in both if "." not in path]
    return tuple(Pair(path, path) for outer in outermost for path in _layers(outer, both))


def _layers(path: str, both: list[str]) -> list[str]:
    """The layers of the first list inside a module; itself where there is none."""
    inside = [other for other in both if other.startswith(f"{path}.")]
    children = [other for other in inside if "." not in other[len(path) + 1 :]]
    numbered = [child for child in children if child.rpartition(".")[2].isdigit()]
    if numbered:
        return numbered
    if any(part.isdigit() for other in inside for part in other.split(".")):
        return [layer for child in children for layer in _layers(child, both)]
    return [path]


def _alike(ours: fx.Node, theirs: Any) -> bool:
    return theirs is None or ours.meta[KEY].dim() == theirs.meta[KEY].dim()


def _paths(module: nn.Module) -> list[str]:
    return [path for path, _ in module.named_modules() if path]
