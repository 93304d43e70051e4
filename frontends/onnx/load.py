"""`load_onnx`: a model file to a Program."""

from __future__ import annotations

import traceback
from dataclasses import replace
from pathlib import Path

from tersor.ir.block_operators import FAKE_QUANTIZE_BLOCKS, FAKE_QUANTIZE_DYNAMIC
from tersor.ir.errors import ArchiveError, TersorError, TraceError
from tersor.ir.operators import FAKE_QUANTIZE, FAKE_QUANTIZE_BIAS
from tersor.ir.program import HistoryEntry, Program
from tersor.ir.stage import Stage
from tersor.ir.verifier import verify

from . import rules as rules  # registers them
from .budget import Budget
from .equal_dimensions import MOST_TRIES, differing, merged
from .importer import Importer
from .interpret import Interpreter
from .model_file import ModelFile, read, signature_of

_QUANTIZE = (FAKE_QUANTIZE, FAKE_QUANTIZE_BIAS, FAKE_QUANTIZE_BLOCKS, FAKE_QUANTIZE_DYNAMIC)


def load_onnx(path: str | Path) -> Program:
    """Read an ONNX model into a Program of the operators that `trace` gives.

    Float initializers become parameters under their own names, other constants buffers. Nodes are called what their
    outputs are called in the file. Inputs are taken by position or by name; one output is a tensor, several are a dict
    by name. Dimensions with a name stay dynamic. Quantized models arrive with their scales, at stage fake_quant.
    Weights that lie beside the file are mapped, and must lie in its folder.

    Raises ArchiveError where the file is no ONNX model, TraceError naming file and node where it cannot be imported.
    """
    path = Path(path)
    try:
        return _imported(path)
    except (ArchiveError, TraceError) as error:
        if str(path) not in error.what:
            error.within(str(path))
        raise
    except Exception as error:  # torch's own, of a file that makes no sense: of no node, as those are named before
        what = error.what if isinstance(error, TersorError) else f"cannot be imported: {_first_line(error)}"
        node = error.node if isinstance(error, TersorError) else None
        raise TraceError(f"{path}: {what}", node=node) from error


def _imported(path: Path) -> Program:
    """Import the file, if need be with dimensions made equal; the first error where that does not help."""
    file = read(path)
    first: TersorError | None = None
    budget = Budget(file.model, file.size)
    for _ in range(MOST_TRIES):
        budget.start_again()
        try:
            return _built(file, budget)
        except TersorError as error:
            first = first or error
            equal = merged(signature_of(file).inputs, dims, file.equal) if (dims := differing(error)) else None
            if equal is None:
                break
            _let_go(error)
            file = replace(file, equal=equal)
    assert first is not None, "the loop ends by it"
    raise first


def _let_go(error: BaseException | None) -> None:
    """Free what the frames of an error hold, which is all that was imported."""
    while error is not None:
        traceback.clear_frames(error.__traceback__)
        error = error.__cause__


def _built(file: ModelFile, budget: Budget) -> Program:
    importer = Importer(file, budget)
    outputs = Interpreter(importer).graph()
    program = importer.program
    program.graph.output(tuple(importer.node(value) for value in outputs))
    program.graph.eliminate_dead_code()
    program.remove_unused_tensors()
    if any(program.graph.find_nodes(op="call_function", target=target) for target in _QUANTIZE):
        program.stage = Stage.FAKE_QUANT
    verify(program, shapes=())
    notes = tuple(f"dimension {name} taken to be {kept}" for name, kept in sorted(file.equal.items()))
    return program.recorded(HistoryEntry("load_onnx", {"path": file.path.name}, notes))


def _first_line(error: Exception) -> str:
    return str(error).splitlines()[0] if str(error) else type(error).__name__
