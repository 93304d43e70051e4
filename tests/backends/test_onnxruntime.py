"""The onnxruntime target: files, artifacts, audit, errors."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import onnx
import onnxruntime
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tersor.backends.onnx import file as onnx_file
from tersor.backends.onnxruntime.audit import integer_kernels, optimized
from tersor.backends.onnxruntime.backend import OnnxRuntime
from tersor.frontends.torch_export import trace
from tersor.ir.errors import ArchiveError, LoweringError, SignatureError
from tersor.ir.program import Program
from tersor.lowering import lower
from tersor.passes.quantization.calibrate import Calibrate
from tersor.passes.quantization.insert_fake_quant import InsertFakeQuant
from tersor.passes.quantization.quantize import Quantize


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem, self.body = nn.Conv2d(3, 16, 3, padding=1), nn.Conv2d(16, 16, 3, padding=1)
        self.head = nn.Linear(16, 4)

    def forward(self, image: Tensor) -> dict[str, Tensor]:
        features = torch.relu(self.stem(image))
        features = torch.relu(features + self.body(features))
        pooled = features.mean((2, 3))
        return {"scores": self.head(pooled), "smooth": F.gelu(pooled)}


@pytest.fixture(scope="module")
def floats() -> Program:
    torch.manual_seed(0)
    return trace(Net(), (torch.randn(2, 3, 8, 8),), dynamic={"image": {0: "batch"}})


@pytest.fixture(scope="module")
def quantized(floats: Program) -> Program:
    return Calibrate([torch.randn(4, 3, 8, 8)], pair_safe=True)(InsertFakeQuant()(floats))


# -- files -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("external", [False, True])
def test_an_artifact_runs_and_opens_again(floats: Program, tmp_path: Path, external: bool) -> None:
    written = OnnxRuntime(external_data=external).emit(floats, tmp_path / "new" / "folder")
    opened = OnnxRuntime.open(written.path)
    assert opened.signature == written.signature == floats.signature
    assert opened.report == written.report
    image = torch.randn(5, 3, 8, 8)
    for artifact in (written, opened):
        found, expected = artifact.run(image), floats(image)
        assert found.keys() == expected.keys()
        for name in found:
            torch.testing.assert_close(found[name], expected[name].detach(), rtol=1e-5, atol=1e-5)


def test_external_data_holds_the_tensors_and_leaves_nothing_stale(floats: Program, tmp_path: Path) -> None:
    first = OnnxRuntime(external_data=True).emit(floats, tmp_path)
    data, model = sorted(first.report.files)
    assert first.report.files[data] > 8_000 > first.report.files[model]
    other = floats.copy()
    other.set_tensor("body.weight", torch.zeros(16, 16, 3, 3))
    second = OnnxRuntime(external_data=True).emit(other, tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == {"artifact.json", *second.report.files}
    assert data not in second.report.files


def test_a_model_too_large_for_one_file_is_split_unasked(
    floats: Program, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(onnx_file, "LIMIT", 1000)
    artifact = OnnxRuntime(audit=False).emit(floats, tmp_path)
    assert len(artifact.report.files) == 2
    image = torch.randn(1, 3, 8, 8)
    torch.testing.assert_close(artifact.run(image)["scores"], floats(image)["scores"].detach(), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("external", [False, True])
def test_an_interrupted_write_leaves_what_was_there(
    floats: Program, quantized: Program, tmp_path: Path, external: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    backend = OnnxRuntime(external_data=external)
    backend.emit(floats, tmp_path)
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}

    def interrupt(*_: Any, **__: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(onnx.checker, "check_model", interrupt)
    with pytest.raises(KeyboardInterrupt):
        backend.emit(quantized, tmp_path)
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before
    assert OnnxRuntime.open(tmp_path).run(torch.zeros(1, 3, 8, 8))["scores"].shape == (1, 4)


def test_what_the_checker_refuses_is_not_kept(tmp_path: Path) -> None:
    model = onnx.helper.make_model(
        onnx.helper.make_graph([onnx.helper.make_node("Relu", ["nowhere"], ["y"])], "broken", [], [])
    )
    with pytest.raises(LoweringError, match="checker refuses"):
        onnx_file.write_model(model, tmp_path)
    assert list(tmp_path.iterdir()) == []


def tamper(change: Callable[[dict[str, Any]], Any]) -> Callable[[Path], None]:
    def act(folder: Path) -> None:
        path = folder / "artifact.json"
        document = json.loads(path.read_text())
        change(document)
        path.write_text(json.dumps(document))

    return act


DAMAGE: dict[str, tuple[Callable[[Path], Any], str]] = {
    "no manifest": (lambda folder: (folder / "artifact.json").unlink(), "is not an artifact"),
    "truncated manifest": (lambda folder: (folder / "artifact.json").write_text('{"format"'), "is not an artifact"),
    "a list": (lambda folder: (folder / "artifact.json").write_text("[]"), "is not an artifact"),
    "newer": (tamper(lambda document: document.update(format=99)), "newer version"),
    "another target": (tamper(lambda document: document.update(target="hls")), "another target"),
    "broken signature": (tamper(lambda document: document["signature"].pop("inputs")), "is not an artifact"),
    "missing model": (lambda folder: (folder / "model.onnx").unlink(), "lacks model.onnx"),
    "another model": (lambda folder: (folder / "model.onnx").write_bytes(b"x"), "is not the file"),
}


@pytest.mark.parametrize("name", DAMAGE)
def test_a_damaged_artifact_is_said_to_be_one(name: str, floats: Program, tmp_path: Path) -> None:
    damage, message = DAMAGE[name]
    OnnxRuntime(audit=False).emit(floats, tmp_path)
    damage(tmp_path)
    with pytest.raises(ArchiveError, match=message):
        OnnxRuntime.open(tmp_path)


# -- running ---------------------------------------------------------------------------------------------------------


def test_inputs_that_do_not_fit_are_refused(floats: Program, tmp_path: Path) -> None:
    artifact = OnnxRuntime(audit=False).emit(floats, tmp_path)
    with pytest.raises(SignatureError, match="does not fit"):
        artifact.run(torch.randn(2, 3, 9, 9))


def test_threads_reach_the_session(floats: Program, tmp_path: Path) -> None:
    artifact: Any = OnnxRuntime(audit=False, threads=2).emit(floats, tmp_path)
    assert artifact.threads == 2
    artifact.set_threads(1)
    assert artifact.session(1).get_session_options().intra_op_num_threads == 1
    assert artifact.run(torch.zeros(1, 3, 8, 8))["scores"].shape == (1, 4)


def test_layers_have_the_names_of_the_program_s_nodes(quantized: Program, tmp_path: Path) -> None:
    image = torch.randn(2, 3, 8, 8)
    layers = dict(OnnxRuntime(audit=False).emit(quantized, tmp_path).layers([image]))
    computed: dict[str, Tensor] = {}

    class Recorder(torch.fx.Interpreter):
        def run_node(self, n: torch.fx.Node) -> Any:
            computed[n.name] = super().run_node(n)
            return computed[n.name]

    Recorder(quantized.module).run(image)
    shared = computed.keys() & layers.keys()
    assert {"conv2d", "conv2d_1", "mean_quantized"} <= shared
    for name in shared:
        torch.testing.assert_close(layers[name], computed[name].detach(), rtol=0.05, atol=0.05)


# -- audit -----------------------------------------------------------------------------------------------------------


def test_the_audit_says_what_onnx_runtime_made(quantized: Program, tmp_path: Path) -> None:
    artifact = OnnxRuntime().emit(quantized, tmp_path)
    rows = {row.node: row for row in artifact.report.audit}
    made = [node.op_type for node in optimized(tmp_path / "model.onnx").node]
    integer = [row for row in rows.values() if row.precision == "int8" and row.operator == "aten.conv2d"]
    assert len(integer) == made.count("QLinearConv") == 2
    assert rows["linear"].precision == "int8"
    assert "QGemm" in made
    assert rows["relu"].reason == "folded into requantization"
    assert rows["gelu"].precision == "float32"
    assert rows["gelu"].reason == "ONNX Runtime has no integer kernel for Gelu on x86"
    assert rows["conv2d"].macs == quantized.cost().nodes["conv2d"].macs > 0
    assert artifact.report.integer_share == 1.0


@pytest.mark.parametrize("kind", [nn.LSTM, nn.GRU, nn.RNN])
def test_a_float_kernel_is_not_integer_because_its_result_is_moved_in_integers(
    kind: type[nn.Module], tmp_path: Path
) -> None:
    class Recurrent(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer, self.head = kind(8, 16, batch_first=True), nn.Linear(16, 3)

        def forward(self, x: Tensor) -> Any:
            return self.head(self.layer(x)[0])

    torch.manual_seed(0)
    x = torch.randn(2, 10, 8)
    report = lower(Quantize(calibration=[x])(trace(Recurrent(), x)), "onnxruntime", tmp_path).report
    gates = {nn.LSTM: 4, nn.GRU: 3, nn.RNN: 1}[kind]
    recurrent, linear = 20 * gates * 16 * (8 + 16), 20 * 16 * 3
    assert report.integer_share == pytest.approx(linear / (linear + recurrent))


def test_the_audit_of_a_float_program_holds_no_integer(floats: Program, tmp_path: Path) -> None:
    report = OnnxRuntime().emit(floats, tmp_path).report
    assert {row.precision for row in report.audit} == {"float32"}
    assert {row.reason for row in report.audit} == {"the program is not quantized"}
    assert report.integer_share == 0.0
    assert report.notes == ("the program is not quantized",)


def test_the_audit_is_not_taken_in_by_quantized_inputs(quantized: Program, tmp_path: Path) -> None:
    """With fusion off nothing runs in integer, whatever the model looks like."""
    OnnxRuntime(audit=False).emit(quantized, tmp_path)
    plain = onnx.load(tmp_path / "model.onnx").graph
    kernels = integer_kernels(plain)
    assert not any(kernels[name] for name in ("conv2d", "conv2d_1", "add", "linear") if name in kernels)


def test_moves_on_integers_count_as_integer() -> None:
    node = onnx.helper.make_node
    graph = onnx.helper.make_graph(
        [
            node("QuantizeLinear", ["x", "s"], ["q"], name="x_quantized/QuantizeLinear"),
            node("Transpose", ["q"], ["t"], name="transpose/Transpose_token_3"),
            node("QGemm", ["t", "s", "z", "w", "s", "z", "b"], ["y"], name="linear"),
            node("Gelu", ["y"], ["g"], name="gelu"),
        ],
        "graph",
        [],
        [],
    )
    found = integer_kernels(graph)
    assert (found["transpose"], found["linear"], found["gelu"]) == (True, True, False)


# -- options and errors ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("version", "opset"), [("1.23.2", 21), ("1.24.1", 23), ("1.32.0", 23), ("2.0.0+cpu", 23)])
def test_a_file_is_for_the_runtime_that_is_installed(
    version: str, opset: int, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Version 1.23 cannot quantize in opset 23."""
    monkeypatch.setattr(onnxruntime, "__version__", version)
    program = trace(nn.Linear(4, 3), (torch.randn(2, 4),))
    OnnxRuntime(audit=False).emit(program, tmp_path)
    assert onnx.load(tmp_path / "model.onnx").opset_import[0].version == opset


@pytest.mark.parametrize("opset", [20, 99])
def test_an_opset_that_cannot_be_written_is_refused(opset: int) -> None:
    with pytest.raises(LoweringError, match="opset"):
        OnnxRuntime(opset=opset)


def test_an_uncalibrated_program_is_refused_before_anything_is_written(floats: Program, tmp_path: Path) -> None:
    program = InsertFakeQuant()(floats)
    refused = OnnxRuntime().unsupported(program)
    assert refused
    assert all("run Calibrate first" in str(reason) for reason in refused)
    observer = next(node for node in program.graph.nodes if node.name == refused[0].node)
    assert OnnxRuntime().supports(program, observer) == refused[0]
    assert OnnxRuntime().supports(program, program.outputs[0]) is None
    with pytest.raises(LoweringError, match="not calibrated"):
        OnnxRuntime().emit(program, tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_the_file_runs_without_tersor(quantized: Program, tmp_path: Path) -> None:
    artifact = OnnxRuntime(audit=False).emit(quantized, tmp_path)
    session = onnxruntime.InferenceSession(str(artifact.path / "model.onnx"), providers=["CPUExecutionProvider"])
    image = torch.randn(3, 3, 8, 8)
    assert [given.shape for given in session.get_inputs()] == [["batch", 3, 8, 8]]
    found = session.run(["scores", "smooth"], {"image": image.numpy()})
    expected = artifact.run(image)
    assert torch.equal(torch.from_numpy(found[0]), expected["scores"])
