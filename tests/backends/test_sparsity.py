"""Every target says what it does with the zeros that a program promises."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn

import tersor as ts
from tersor.ir.program import Program
from tersor.ir.sparsity import Channel, Pattern
from tersor.ir.stage import Stage

PATTERNS: dict[str, Pattern] = {
    "2:4 sparse": ts.NM(2, 4),
    "blocks of 1x4": ts.Block(1, 4, 0.5),
    "without structure": ts.Unstructured(0.5),
}


def sparse(pattern: Pattern, coverage: ts.Coverage) -> Program:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(32, 32), nn.ReLU(), nn.Linear(32, 8))
    batches = [torch.randn(4, 32) for _ in range(2)]
    program = ts.trace(model, batches[0], dynamic={"input": {0: "batch"}})
    sparsified = ts.Sparsify(pattern, rules=((r"^2\.", None),))(program)
    return ts.Quantize(ts.INT8_SYMMETRIC, calibration=batches, coverage=coverage)(sparsified)


@pytest.mark.parametrize("target", ["onnxruntime", "neon", "hls", "tensorrt"])
@pytest.mark.parametrize("written", PATTERNS)
def test_the_report_says_what_becomes_of_zeros(target: str, written: str, tmp_path: Path) -> None:
    coverage = ts.Coverage.EVERYTHING if target in ("neon", "hls") else ts.Coverage.FASTEST
    program = sparse(PATTERNS[written], coverage)
    assert [type(pattern) for pattern in program.sparsity.values()] == [type(PATTERNS[written])]
    artifact = ts.lower(program, target, tmp_path)
    said = [note for note in artifact.report.notes if note.startswith(("1 weights", "2:4 sparse"))]
    assert len(said) == 1
    assert written in said[0]


def test_a_dense_program_has_nothing_to_say(tmp_path: Path) -> None:
    program = ts.trace(nn.Linear(8, 8), torch.randn(2, 8))
    assert program.stage is Stage.FLOAT
    assert not any("sparse" in note for note in ts.lower(program, "onnxruntime", tmp_path).report.notes)


def test_channels_of_zeros_are_named(tmp_path: Path) -> None:
    program = ts.trace(nn.Linear(8, 8), torch.randn(2, 8))
    weight = program.tensor("weight").detach().clone()
    weight[3] = 0
    program.set_tensor("weight", weight)
    program.sparsity["weight"] = Channel((3,))
    (note,) = (n for n in ts.lower(program, "onnxruntime", tmp_path).report.notes if "zeros" in n)
    assert note.startswith("1 weights with channels of zeros")
