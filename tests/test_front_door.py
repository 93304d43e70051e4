"""The facade: lower, compress, load, and what they say when they cannot."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

import tersor as ts
from tersor.backends.onnxruntime.backend import OnnxRuntime
from tersor.ir.errors import LoweringError, RecipeError
from tersor.passes.compare import difference


def net() -> nn.Module:
    """A small residual network."""

    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Conv2d(3, 16, 3, padding=1), nn.Conv2d(16, 16, 3, padding=1)
            self.norm = nn.BatchNorm2d(16)
            self.linear = nn.Linear(16, 10)

        def forward(self, x: Tensor) -> Tensor:
            y = torch.relu(self.a(x))
            y = torch.relu(self.norm(self.b(y)) + y)
            logits: Tensor = self.linear(y.mean((2, 3)))
            return logits

    torch.manual_seed(0)
    return Net().eval()


def test_compress_goes_from_model_to_artifact_in_one_call(tmp_path: Path) -> None:
    model, x = net(), torch.randn(4, 3, 8, 8)
    artifact = ts.compress(model, x, calibration=[x], dynamic={"x": {0: "batch"}}, out=tmp_path)
    with torch.no_grad():
        assert difference([model(x)], [artifact.run(x)]).sqnr > 25
    assert artifact.run(torch.randn(1, 3, 8, 8)).shape == (1, 10)
    assert artifact.report.integer_share == 1.0


def test_compress_without_data_warns(tmp_path: Path) -> None:
    x = torch.randn(2, 3, 8, 8)
    with pytest.warns(UserWarning, match="calibration=batches"):
        artifact = ts.compress(net(), x, out=tmp_path)
    assert artifact.report.integer_share == 1.0


def test_compress_takes_passes_and_programs(tmp_path: Path) -> None:
    program = ts.trace(net(), torch.randn(2, 3, 8, 8))
    artifact = ts.compress(program, passes=[ts.FoldBatchNorm()], out=tmp_path)
    assert artifact.report.integer_share == 0


def test_lower_takes_a_target_with_options_and_saves_nothing_of_the_program(tmp_path: Path) -> None:
    x = torch.randn(2, 3, 8, 8)
    program = ts.trace(net(), x)
    artifact = ts.lower(program, OnnxRuntime(external_data=True), tmp_path / "deep" / "folder")
    with torch.no_grad():
        assert torch.allclose(program(x), artifact.run(x), atol=1e-5)


def test_without_a_folder_a_new_one_is_made() -> None:
    artifact = ts.lower(ts.trace(net(), torch.randn(2, 3, 8, 8)))
    assert (artifact.path / "model.onnx").exists()


def test_what_a_target_does_not_take_is_said_before_anything_is_written(tmp_path: Path) -> None:
    class Odd(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            y: Tensor = torch.special.i1e(x) + torch.linalg.matrix_exp(x)
            return y

    with pytest.raises(LoweringError, match="i1e") as caught:
        ts.lower(ts.trace(Odd(), torch.randn(3, 3)), out=tmp_path / "out")
    assert "matrix_exp" in str(caught.value)
    assert "test_front_door.py" in str(caught.value)
    assert not list(tmp_path.rglob("*.onnx"))


def test_an_unknown_target_says_what_was_meant() -> None:
    with pytest.raises(RecipeError, match="did you mean 'onnxruntime'"):
        ts.lower(ts.trace(net(), torch.randn(2, 3, 8, 8)), "onnx-runtime")


def test_a_program_can_be_saved_loaded_and_lowered(tmp_path: Path) -> None:
    x = torch.randn(2, 3, 8, 8)
    program = ts.PassManager([ts.Quantize(calibration=[x])]).run(ts.trace(net(), x)).program
    loaded = ts.load(program.save(tmp_path / "net.tersor"))
    with torch.no_grad():
        assert torch.equal(program(x), loaded(x))
    first, second = (ts.lower(p, out=tmp_path / name) for p, name in ((program, "a"), (loaded, "b")))
    assert torch.equal(first.run(x), second.run(x))


def test_quantized_training_reaches_the_artifact(tmp_path: Path) -> None:
    """Fake-quantize is part of the graph, so SGD trains through it, and what is lowered is what was trained."""
    x = torch.randn(8, 3, 8, 8)
    program = ts.PassManager([ts.Quantize(calibration=[x])]).run(ts.trace(net(), x)).program
    trained = program.copy()
    for name, parameter in list(trained.parameters().items()):
        trained.set_tensor(name, parameter.detach().clone())
    optimizer = torch.optim.SGD(trained.module.parameters(), lr=0.05)
    before = trained(x).square().mean()
    for _ in range(3):
        optimizer.zero_grad()
        trained(x).square().mean().backward()
        optimizer.step()
    with torch.no_grad():
        after = trained(x)
        assert after.square().mean() < before
        assert difference([after], [ts.lower(trained, out=tmp_path).run(x)]).sqnr > 30


def test_a_custom_pass_is_ten_lines() -> None:
    @dataclass(frozen=True)
    class ReplaceSilu(ts.Pass):
        """Replace silu with hardswish, which integer backends lower exactly."""

        promise = ts.Promise.APPROXIMATE

        def run(self, program: ts.Program) -> ts.PassResult:
            """Swap the operator."""
            nodes = program.graph.find_nodes(op="call_function", target=torch.ops.aten.silu.default)
            for node in nodes:
                node.target = torch.ops.aten.hardswish.default
            return ts.PassResult(program, modified=bool(nodes))

    program = ts.trace(nn.Sequential(nn.Linear(4, 4), nn.SiLU()), torch.randn(2, 4))
    result = ts.PassManager([ReplaceSilu()]).run(program)
    assert "hardswish" in str(result.program)
    assert "silu(" in str(program)
    assert result.report.rows[-1].name == "replace_silu"
