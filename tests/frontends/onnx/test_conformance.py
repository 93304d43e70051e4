"""ONNX's own suite of node cases, run through the importer and the running program.

Each operator is taken or not: `not_taken.txt` lists those that are not, `not_passed.txt` the cases of taken operators
that do not pass, as patterns with reasons. Both may only shrink: a case that passes although it is listed fails here.

Run by hand it prints what becomes of each case of some operators, or counts of all:

    python tests/frontends/onnx/test_conformance.py reshape gather
    python tests/frontends/onnx/test_conformance.py
"""

from __future__ import annotations

import importlib
import pkgutil
import sys
import tempfile
import warnings
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from fnmatch import fnmatchcase
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from onnx.backend.test.case import node as suite
from onnx.backend.test.case.test_case import TestCase

from tersor.frontends.onnx.dtypes import DTYPES
from tersor.frontends.onnx.load import load_onnx
from tersor.frontends.onnx.registry import RULES
from tersor.ir.errors import TersorError
from tersor.ir.program import Program

HERE = Path(__file__).parent
PREFIX = f"{suite.__name__}."
MODULES = sorted(m.name.removeprefix(PREFIX) for m in pkgutil.walk_packages(suite.__path__, PREFIX) if not m.ispkg)
ONNX_TYPES = {dtype: number for number, dtype in DTYPES.items()}


@dataclass(frozen=True)
class Outcome:
    """What became of a case: passed, refused by the importer, or wrong; and how many inputs were made constants."""

    kind: str
    detail: str = ""
    constants: int = 0


@cache
def cases_of(module: str) -> tuple[TestCase, ...]:
    """The cases that one file of the suite makes when it is imported."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        np.random.seed(0)  # what the suite draws its data from
        start = len(suite._NodeTestCases)
        importlib.import_module(PREFIX + module)
        return tuple(suite._NodeTestCases[start:])


def operators_of(case: TestCase) -> set[str]:
    """The operators of a case, those in branches and loops left out."""
    assert case.model is not None
    return {f"{node.domain}.{node.op_type}".lstrip(".") for node in case.model.graph.node}


def with_constants(model: onnx.ModelProto, inputs: list[Any], chosen: list[bool]) -> onnx.ModelProto:
    """The model with some inputs as initializers."""
    changed = onnx.ModelProto()
    changed.CopyFrom(model)
    del changed.graph.input[:]
    for value, array, constant in zip(model.graph.input, inputs, chosen, strict=True):
        if constant:
            changed.graph.initializer.append(onnx.numpy_helper.from_array(np.asarray(array), value.name))
        else:
            changed.graph.input.append(value)
    return changed


def ways(inputs: list[Any]) -> Iterator[list[bool]]:
    """What to make constants of, the least first. In real models sizes, axes, scales and the like are constants."""
    arrays = [isinstance(array, np.ndarray | np.generic) for array in inputs]
    yield [False] * len(inputs)
    yield [array and inputs[i].ndim < 2 and inputs[i].dtype.kind in "iu" for i, array in enumerate(arrays)]
    yield [array and i > 0 for i, array in enumerate(arrays)]
    yield arrays


def load(case: TestCase, inputs: list[Any], folder: Path) -> tuple[Program, list[bool]]:
    """The program, and which inputs are constants of it. Raises what the importer raised at first."""
    first: TersorError | None = None
    path = folder / "model.onnx"
    assert case.model is not None
    for chosen in ways(inputs):
        path.write_bytes(with_constants(case.model, inputs, chosen).SerializeToString())
        try:
            return load_onnx(path), chosen
        except TersorError as error:
            first = first or error
            if "there is no import rule" in error.what:
                break
    assert first is not None
    raise first


def run(case: TestCase, folder: Path) -> Outcome:
    for inputs, expected in case.data_sets or ():
        try:
            program, constants = load(case, list(inputs), folder)
        except TersorError as error:
            return Outcome("refused", str(error))
        torch.manual_seed(0)
        try:
            given = [to_torch(array) for array, constant in zip(inputs, constants, strict=True) if not constant]
            found = program.run(program.signature.flatten(given, {}))
            compare([tensor.detach() for tensor in found], expected, case.rtol, case.atol)
        except Exception as error:  # noqa: BLE001  # whatever it is, the case does not pass
            return Outcome("wrong", f"{type(error).__name__}: {error}")
    return Outcome("passed", constants=sum(constants))


def to_torch(array: Any) -> torch.Tensor:
    """A tensor of the same type, also of types that numpy has from ml_dtypes."""
    array = onnx.numpy_helper.to_array(array) if isinstance(array, onnx.TensorProto) else array
    dtype = DTYPES[onnx.helper.np_dtype_to_tensor_dtype(array.dtype)]
    contiguous = np.ascontiguousarray(array)
    if not array.size:
        return torch.empty(array.shape, dtype=dtype)
    return torch.frombuffer(bytearray(contiguous.tobytes()), dtype=dtype).reshape(array.shape)


def compare(found: list[torch.Tensor], expected: Any, rtol: float, atol: float) -> None:
    """Types and sizes are equal, numbers near; half precision is good for two steps of its own."""
    assert len(found) == len(expected)
    for tensor, array in zip(found, expected, strict=True):
        wanted = to_torch(array)
        assert tensor.dtype == wanted.dtype, f"{tensor.dtype} instead of {wanted.dtype}"
        assert tensor.shape == wanted.shape, f"{list(tensor.shape)} instead of {list(wanted.shape)}"
        if tensor.dtype.is_floating_point:
            steps = max(rtol, 2 * torch.finfo(tensor.dtype).eps)
            torch.testing.assert_close(tensor.double(), wanted.double(), rtol=steps, atol=atol, equal_nan=True)
        else:
            assert torch.equal(tensor, wanted), "other numbers"


# -- The lists ---------------------------------------------------------------------------------------------------------


def lines(name: str) -> list[str]:
    text = (HERE / name).read_text(encoding="utf-8").splitlines()
    return [line for line in text if line and not line.startswith("#")]


NOT_TAKEN = frozenset(lines("not_taken.txt"))
NOT_PASSED = tuple(line.split(maxsplit=1)[0] for line in lines("not_passed.txt"))


def listed(case: TestCase) -> str | None:
    """Why a case is not expected to pass."""
    missing = sorted(operators_of(case) & NOT_TAKEN)
    if missing:
        return f"not_taken.txt lists {missing[0]}"
    pattern = next((pattern for pattern in NOT_PASSED if fnmatchcase(case.name, pattern)), None)
    return pattern and f"not_passed.txt lists {pattern}"


def complaint(case: TestCase, outcome: Outcome) -> str | None:
    """What is wrong with an outcome."""
    reason = listed(case)
    if outcome.kind == "passed":
        return f"{case.name} passes, yet {reason}: take it off the list" if reason else None
    if outcome.kind == "wrong" and reason and reason.startswith("not_taken"):
        return None
    return None if reason else f"{case.name} is {outcome.kind}: {outcome.detail}"


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("module", MODULES)
def test_cases_of_an_operator(module: str, tmp_path: Path) -> None:
    found = [complaint(case, run(case, tmp_path)) for case in cases_of(module)]
    complaints = [text for text in found if text]
    assert not complaints, "\n".join(complaints)


def test_the_lists_are_sorted_and_give_reasons() -> None:
    for name in ("not_taken.txt", "not_passed.txt"):
        assert lines(name) == sorted(set(lines(name)))
    assert all(len(line.split(maxsplit=1)) == 2 for line in lines("not_passed.txt"))


def test_operators_that_have_a_rule_are_not_listed() -> None:
    taken = {f"{domain}.{operator}".lstrip(".") for domain, operator in RULES}
    assert not taken & NOT_TAKEN


# -- By hand -----------------------------------------------------------------------------------------------------------


def main(modules: list[str]) -> None:
    counts: Counter[str] = Counter()
    operators: Counter[str] = Counter()
    with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for module in modules or MODULES:
            for case in cases_of(module):
                outcome = run(case, Path(folder))
                counts[outcome.kind] += 1
                counts["passed with constants"] += outcome.constants > 0
                names = operators_of(case)
                operators.update(names if outcome.kind == "passed" else ())
                if modules or outcome.kind == "wrong":
                    detail = " | ".join(outcome.detail.splitlines()[:4])
                    print(f"{outcome.kind:8} {case.name}: {detail}"[:300])
    print(dict(counts), f"{len(operators)} operators in cases that pass")
    if not modules:
        every = {name for module in MODULES for case in cases_of(module) for name in operators_of(case)}
        print("in no case that passes:", *sorted(every - set(operators)), sep="\n")


if __name__ == "__main__":
    main(sys.argv[1:])
