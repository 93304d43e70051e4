"""The record of a run: what is written is read back, what is malformed is refused, what it says is true."""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import tersor as ts
from tersor.backends.clock import Clock
from tersor.ir.errors import ArchiveError
from tersor.layer_record import layers_of, pattern_text
from tersor.passes.training.options import Better
from tersor.recording import Recorder
from tersor.run_record import Layer, Metric, Point, RunRecord, Step, Timing

FULL = RunRecord(
    "net",
    target="neon",
    started="2026-01-02T03:04:05+00:00",
    seconds=1.5,
    versions={"torch": "2"},
    metric=Metric("top1", Better.LOWER, floor=0.5),
    steps=(
        Step("given", metric=math.nan, latency=Timing(0.01, Clock.EMULATED, "neon")),
        Step("prune", "approximate", {"share": "0.5"}, sqnr=math.inf, sqnr_total=-math.inf, notes=("a", "b")),
    ),
    layers=(Layer("conv", "aten.conv2d", bytes=3, density=0.25, pattern="2:4", error=12.5),),
    points=(Point("half", {"bytes": 2.0}, 0.9, chosen=True, reason="best"), Point("none", error="it broke")),
    files={"model.onnx": 7},
    before="program net (float)",
    recipe="passes: []\n",
)


def same(left: Any, right: Any) -> bool:
    """Equal, where NaN equals itself."""
    return repr(left) == repr(right)


def test_a_record_is_read_back_as_it_was_written(tmp_path: Path) -> None:
    path = FULL.save(tmp_path / "new" / "folder")
    assert same(RunRecord.load(path), FULL)
    assert same(RunRecord.load(path.parent), FULL)
    json.loads(path.read_text(), parse_constant=lambda name: pytest.fail(f"{name} is not JSON"))
    assert [file.name for file in path.parent.iterdir()] == ["run.json"]


def test_a_failed_write_leaves_the_old_record(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = FULL.save(tmp_path)
    before = path.read_bytes()

    def full(self: Path, *_: object, **__: object) -> None:
        self.open("w").write("half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "write_text", full)
    with pytest.raises(OSError, match="No space"):
        dataclasses.replace(FULL, name="other").save(tmp_path)
    assert path.read_bytes() == before
    assert [file.name for file in tmp_path.iterdir()] == ["run.json"]


def edited(change: Callable[[dict[str, Any]], Any]) -> str:
    data = FULL.to_json()
    change(data)
    return json.dumps(data)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "is not JSON"),
        ("[" * 100_000, "is not JSON"),
        ('{"tersor_run": 1, "name": NaN}', "NaN is no JSON"),
        ("[]", "is not the record of a run"),
        ('{"name": "x"}', "is not the record of a run"),
        (edited(lambda d: d.update(tersor_run=2)), "has another form"),
        (edited(lambda d: d.update(tersor_run=True)), "is not the record of a run"),
        (edited(lambda d: d.pop("name")), "an entry 'name'"),
        (edited(lambda d: d.update(nonsense=1)), "'nonsense'"),
        (edited(lambda d: d.update(steps={})), r"\.steps is malformed"),
        (edited(lambda d: d["steps"][1].update(bytes=1.5)), r"\.steps\[1\]\.bytes is malformed"),
        (edited(lambda d: d["steps"][0].update(bytes=True)), r"\.steps\[0\]\.bytes"),
        (edited(lambda d: d["steps"][0].update(sqnr="high")), "a number"),
        (edited(lambda d: d["steps"][0]["latency"].update(clock="guessed")), "'measured' or"),
        (edited(lambda d: d["layers"][0].update(name=None)), r"\.layers\[0\]\.name"),
        (edited(lambda d: d["points"][0].update(costs={"bytes": "many"})), r"costs\.bytes"),
    ],
)
def test_a_malformed_record_is_refused_with_its_place(tmp_path: Path, text: str, said: str) -> None:
    (tmp_path / "run.json").write_text(text)
    with pytest.raises(ArchiveError, match=said):
        RunRecord.load(tmp_path)


def test_a_folder_without_a_record_says_what_makes_one(tmp_path: Path) -> None:
    with pytest.raises(ArchiveError, match="tersor compress"):
        RunRecord.load(tmp_path)


# -- what a run records ----------------------------------------------------------------------------------------------


def small() -> tuple[nn.Module, torch.Tensor]:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 4, 1))
    return net.eval(), torch.randn(1, 3, 8, 8)


def test_the_recorder_says_what_the_run_did(tmp_path: Path) -> None:
    model, example = small()
    program = ts.trace(model, (example,))
    seen: list[str] = []

    def evaluate(found: ts.Program) -> float:
        seen.append(str(found.stage))
        return float(found(example).abs().sum())

    recorder = Recorder(ts.lowering.resolve("onnxruntime"), evaluate, Metric("size"), seconds=0.01)
    passes = [ts.FoldBatchNorm(), ts.Sparsify(NM := ts.NM(2, 4)), ts.Quantize(ts.INT8, calibration=[example])]
    result = ts.PassManager(passes, watch=recorder, progress=False).run(program)
    artifact = ts.lower(result.program, "onnxruntime", tmp_path)
    record = recorder.record(result, program, artifact, recipe="passes: []")
    assert [step.name for step in record.steps] == [row.name for row in result.report.rows]
    assert record.steps[0].bytes == program.cost().parameter_bytes
    assert record.steps[-1].metric == pytest.approx(float(result.program(example).abs().sum().detach()))
    assert record.steps[-1].parameters == result.program.cost().parameters
    assert record.steps[0].latency is not None
    assert record.steps[0].latency.clock is Clock.MEASURED
    assert len(seen) == 1 + sum(step.modified for step in record.steps[1:])
    assert record.before == str(program)
    assert record.after == str(result.program)
    first, second = record.layers
    assert (first.macs, second.macs) == (6 * 6 * 8 * 27, 6 * 6 * 8 * 4)
    assert first.runs_in == second.runs_in == "int8"
    assert second.pattern == pattern_text(NM) == "2:4"
    weight = result.program.tensor("3.weight")
    assert second.density == pytest.approx(float((weight != 0).float().mean()))
    assert second.precision == "a8 w8"
    assert second.error is not None
    assert 10 < second.error < 60


def test_the_error_of_a_layer_is_against_the_program_before_anything_was_changed() -> None:
    model, example = small()
    program = ts.trace(model, (example,))
    recorder = Recorder()
    passes = [ts.FoldBatchNorm(), ts.Sparsify(ts.Unstructured(0.5))]
    result = ts.PassManager(passes, watch=recorder, progress=False).run(program)
    record = recorder.record(result, program)
    exact = model(example)
    noise = result.program(example) - exact
    expected = 10 * torch.log10(exact.square().sum() / noise.square().sum())
    assert record.layers[-1].error == pytest.approx(float(expected), abs=0.05)
    assert record.layers[-1].density == pytest.approx(0.5)


def test_an_integer_program_has_the_errors_of_what_it_was_lowered_from() -> None:
    model, example = small()
    program = ts.trace(model, (example,))
    quantize = ts.Quantize(ts.INT8, calibration=[example], coverage=ts.Coverage.EVERYTHING)
    records = []
    pipelines: tuple[list[ts.Pass], ...] = ([quantize], [quantize, ts.LowerToInteger()])
    for passes in pipelines:
        recorder = Recorder()
        result = ts.PassManager(passes, watch=recorder, progress=False).run(program)
        records.append(recorder.record(result, program))
    grids, integers = records
    assert [row.operator for row in integers.layers] == ["tersor.int_conv", "tersor.int_conv"]
    assert [row.precision for row in integers.layers] == ["int8", "int8"]
    assert [row.error for row in integers.layers] == [row.error for row in grids.layers]
    assert [row.macs_before for row in integers.layers] == [row.macs for row in grids.layers]


def test_indices_and_masks_are_no_layers() -> None:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.table = nn.Embedding(10, 4)
            self.register_buffer("order", torch.tensor([1, 0, 2]))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.table(x)[:, self.order].relu()  # type: ignore[no-any-return]  # torch

    program = ts.trace(Net(), (torch.zeros(1, 3, dtype=torch.int64),))
    (layer,) = layers_of(program)
    assert (layer.operator, layer.precision, layer.bytes) == ("aten.embedding", "float32", 160)


@pytest.mark.emulated
def test_layers_that_a_target_renames_are_matched_in_order(tmp_path: Path) -> None:
    model, example = small()
    result = ts.PassManager(
        [ts.Quantize(ts.INT8, calibration=[example], coverage=ts.Coverage.EVERYTHING)], progress=False
    ).run(ts.trace(model, (example,)))
    artifact = ts.lower(result.program, "neon", tmp_path)
    assert artifact.clock in (Clock.EMULATED, Clock.MEASURED)
    rows = layers_of(result.program, audit=artifact.report.audit)
    assert [row.runs_in for row in rows] == ["int8", "int8"]
    assert "instructions" in rows[0].reason


def test_a_latency_that_cannot_be_had_is_said_and_no_end() -> None:
    model, example = small()
    recorder = Recorder(ts.lowering.resolve("neon"), seconds=0.01)
    program = ts.trace(model, (example,))
    result = ts.PassManager([ts.FoldBatchNorm()], watch=recorder, progress=False).run(program)
    step = recorder.record(result, program).steps[0]
    assert step.latency is None
    assert "no latency" in step.notes[-1]
