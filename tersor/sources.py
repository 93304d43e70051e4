"""What the command line names: a model, data, a program on disk, an artifact."""

from __future__ import annotations

import importlib
import json
import sys
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

from torch import nn

from tersor.backends.base import Artifact
from tersor.backends.registry import TARGETS
from tersor.frontends.dynamic import Dynamic
from tersor.frontends.torch_export import trace
from tersor.ir.errors import ArchiveError, RecipeError
from tersor.ir.program import Program

from .inputs import example_batch
from .lowering import load_onnx

SAVED = "program.tersor"
"""The file in which `tersor compress` leaves the compressed program, beside the artifact."""


def load_program(model: str, dynamic: Dynamic | None = None) -> Program:
    """The program that MODEL names: `module:function`, an ONNX file, a file that `Program.save` wrote, or its folder.

    The function returns the model and its example inputs, `(model, inputs)`: a tensor, a tuple, or a dict of keyword
    inputs. A Program is taken as it is.

    Raises RecipeError where there is no such thing, ArchiveError or TraceError where it cannot be read or traced.
    """
    if Path(model).suffix == ".onnx":
        if dynamic:
            raise RecipeError("the dynamic dimensions of an ONNX file are its own", found=str(dynamic))
        return load_onnx(model)
    if Path(model).is_dir():
        return _in_folder(Path(model))
    if ":" not in model or Path(model).exists():
        return Program.load(model)
    made = call(model)
    if isinstance(made, Program):
        return made
    if not (isinstance(made, tuple) and len(made) == 2 and isinstance(made[0], nn.Module)):
        raise RecipeError(f"{model} does not give a model", expected="(model, inputs)", found=_kind(made))
    args, kwargs = split(made[1])
    return trace(made[0], args, kwargs, dynamic)


def _kind(made: object) -> str:
    """A type by name; of a tuple, of what is in it."""
    return f"({', '.join(map(_kind, made))})" if isinstance(made, tuple) else type(made).__name__


def _in_folder(folder: Path) -> Program:
    """The program that `tersor compress` leaves beside an artifact."""
    if not (folder / SAVED).is_file():
        raise RecipeError(f"the folder {folder} holds no program", expected=SAVED, hint="`tersor compress` writes it")
    return Program.load(folder / SAVED)


def load_data(data: str) -> Iterable[Any]:
    """The batches that `module:function` returns. Raises RecipeError."""
    made = call(data)
    if not isinstance(made, Iterable):
        raise RecipeError(f"{data} does not give data", expected="an iterable of batches", found=type(made).__name__)
    return made


def data_or_example(program: Program, data: str | None) -> Iterable[Any]:
    """The batches that `module:function` returns; without one, the inputs that the program was traced with."""
    return [example_batch(program)] if data is None else load_data(data)


def load_metric(metric: str) -> Callable[[Program], float]:
    """The function that `module:function` names, which takes a program and gives a number. Raises RecipeError."""
    found = find(metric)
    if not callable(found):
        raise RecipeError(f"{metric} is no metric", expected="a function of a program", found=type(found).__name__)

    def evaluate(program: Program) -> float:
        value = found(program)
        try:
            return float(value)
        except (TypeError, ValueError):
            raise RecipeError(f"{metric} gave no number", expected="a float", found=repr(value)) from None

    evaluate.__name__ = metric.rpartition(":")[2]
    return evaluate


def call(where: str) -> Any:
    """Find a function, as `find` does, and call it without arguments."""
    found = find(where)
    return found() if callable(found) and not isinstance(found, nn.Module) else found


def find(where: str) -> Any:
    """Import a module, the working directory first, and give what it calls by a name. Raises RecipeError."""
    module, _, function = where.partition(":")
    if not module or not function:
        raise RecipeError(f"{where!r} is neither a file nor module:function")
    if "" not in sys.path:
        sys.path.insert(0, "")
    try:
        return getattr(importlib.import_module(module), function)
    except ImportError as error:
        raise RecipeError(f"{where}: {error}", hint="run from the folder that holds the module") from error
    except AttributeError:
        raise RecipeError(f"module {module} has no {function!r}") from None


def open_artifact(folder: str | Path) -> Artifact:
    """The artifact that `lower` wrote into a folder. Raises ArchiveError."""
    path = Path(folder)
    try:
        target = json.loads((path / "artifact.json").read_text())["target"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ArchiveError(f"{folder} is not an artifact", expected="a folder with artifact.json") from error
    return TARGETS.find(str(target)).open(path)


def split(batch: Any) -> tuple[tuple[Any, ...], Mapping[str, Any]]:
    """A batch as positional and keyword inputs."""
    if isinstance(batch, Mapping):
        return (), batch
    return (tuple(batch), {}) if isinstance(batch, tuple | list) else ((batch,), {})


def parse_dynamic(texts: Iterable[str]) -> Dynamic:
    """`x:0=batch` as `{"x": {0: "batch"}}`. Raises RecipeError."""
    dynamic: dict[str, dict[int, str]] = {}
    for text in texts:
        place, _, label = text.partition("=")
        name, _, dim = place.rpartition(":")
        if not (name and dim.isdigit() and label):
            raise RecipeError(f"not a dynamic dimension: {text!r}", expected="INPUT:DIMENSION=NAME, as x:0=batch")
        dynamic.setdefault(name, {})[int(dim)] = label
    return dynamic
