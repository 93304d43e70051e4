"""Engines built for real, without a GPU: what is in them, against the program that they were built from."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from onnx.reference import ReferenceEvaluator
from torch import Tensor

from tersor.backends.tensorrt.artifact import TensorRTArtifact
from tersor.backends.tensorrt.backend import Attention, Builder, Precision, TensorRT
from tersor.backends.tensorrt.plan import kernels_of_plan
from tersor.frontends.torch_export import trace
from tersor.ir.errors import ArchiveError, LoweringError
from tersor.ir.operators import FAKE_QUANTIZE, quantize_to_grid
from tersor.ir.program import Program
from tersor.ir.quantization import INT8_SYMMETRIC
from tersor.ir.sparsity import NM
from tersor.lowering import lower
from tersor.passes.compare import difference
from tersor.passes.quantization.quantize import Quantize
from tersor.passes.quantization.quantize_dynamic import QuantizeDynamic
from tersor.passes.quantization.quantize_weights import QuantizeWeights
from tersor.passes.quantization.symmetrize_grids import SymmetrizeGrids

from .networks import NETWORKS, floats, quantized

aten = torch.ops.aten


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> TensorRTArtifact:
    artifact = lower(quantized(), TensorRT(), tmp_path_factory.mktemp("built"))
    assert isinstance(artifact, TensorRTArtifact)
    return artifact


def stored_weights(program: Program) -> dict[str, Tensor]:
    """The int8 values of each convolution's and linear's weight, computed from the program alone."""
    found = {}
    for node in program.graph.nodes:
        if node.target in (aten.conv2d.default, aten.linear.default):
            grid = node.args[1]
            assert grid.target is FAKE_QUANTIZE
            weight, scale, zero = (program.constant(argument) for argument in grid.args[:3])
            assert weight is not None
            assert scale is not None
            assert zero is not None
            found[node.name] = quantize_to_grid(weight.detach(), scale, zero, *grid.args[3:]).to(torch.int8)
    return found


def in_the_engine_s_layout(weight: Tensor) -> bytes:
    """Convolutions have channels last, padded to a multiple of four; matrices are as they are."""
    if weight.dim() == 2:
        return weight.numpy().tobytes()
    last = weight.permute(0, 2, 3, 1)
    return bytes(torch.nn.functional.pad(last, (0, -last.shape[-1] % 4)).contiguous().numpy().tobytes())


def test_the_plan_holds_the_program_s_int8_weights(built: TensorRTArtifact) -> None:
    """The bytes themselves, of every weight large enough not to be found by chance."""
    plan = built.engine.read_bytes()
    weights = {name: weight for name, weight in stored_weights(quantized()).items() if weight.numel() > 128}
    assert len(weights) >= 4
    for name, weight in weights.items():
        assert in_the_engine_s_layout(weight) in plan, name


def test_every_product_runs_in_int8(built: TensorRTArtifact) -> None:
    rows = built.layers_run
    assert [row.node for row in rows] == ["conv2d", "conv2d_1", "conv2d_2", "conv2d_3", "linear"]
    assert all(row.integer and not row.why for row in rows)
    assert built.integer_share() == built.report.integer_share == 1.0
    assert sum(row.macs for row in rows) == sum(cost.macs for cost in quantized().cost().nodes.values())
    assert "int8" in str(built.report.audit[0].precision)


def test_a_float_program_gives_a_float_engine(tmp_path: Path) -> None:
    artifact = lower(floats(), "tensorrt", tmp_path)
    assert isinstance(artifact, TensorRTArtifact)
    assert artifact.integer_share() == 0
    assert {row.why for row in artifact.layers_run} == {"the program is not quantized"}
    assert {(row.weights, row.activations) for row in artifact.layers_run} == {("float32", "float32")}
    assert "the program is not quantized" in artifact.report.notes


def test_asymmetric_activations_are_re_expressed_and_that_is_said(tmp_path: Path) -> None:
    artifact = lower(quantized(scheme="int8"), "tensorrt", tmp_path)
    assert isinstance(artifact, TensorRTArtifact)
    assert any("had a zero point" in note for note in artifact.report.notes)
    assert artifact.integer_share() == 1.0
    zeros = [init for init in onnx.load(artifact.model).graph.initializer if "zero_point" in init.name]
    assert zeros
    assert not any(np.any(onnx.numpy_helper.to_array(zero)) for zero in zeros)


def test_the_onnx_file_computes_what_the_program_computes(built: TensorRTArtifact) -> None:
    """What the engine is built from, run by ONNX Runtime: within a step of the program after placement."""
    image = torch.randn(3, 3, 16, 16)
    expected = quantized()(image).detach()
    found = built.run_onnx(image)
    assert difference([expected], [found]).sqnr > 30
    assert difference([floats()(image).detach()], [found]).sqnr > 20


def test_the_onnx_file_loads_in_a_session_as_everybody_opens_it(built: TensorRTArtifact) -> None:
    session = onnxruntime.InferenceSession(str(built.model), providers=["CPUExecutionProvider"])
    image = torch.randn(2, 3, 16, 16)
    (found,) = session.run(None, {"image": image.numpy()})
    assert difference([built.run_onnx(image)], [torch.from_numpy(found)]).sqnr > 30


def test_weights_of_four_bits_that_meet_int8_are_stored_as_int8(tmp_path: Path) -> None:
    artifact = lower(quantized("linears", "w4a8"), "tensorrt", tmp_path)
    assert isinstance(artifact, TensorRTArtifact)
    assert artifact.integer_share() == 1.0
    assert {row.weights for row in artifact.layers_run} == {"int8"}


def test_capabilities_are_named_and_noted(tmp_path: Path) -> None:
    artifact = lower(quantized("linears"), TensorRT(compute_capabilities=("8.9",)), tmp_path)
    assert isinstance(artifact, TensorRTArtifact)
    assert artifact.info is not None
    assert artifact.info.capabilities == ("8.9",)
    assert json.loads((tmp_path / "engine.json").read_text())["capabilities"] == ["8.9"]


def test_opened_again_it_is_the_same(built: TensorRTArtifact) -> None:
    opened = TensorRT.open(built.path)
    assert (opened.info, opened.report, opened.signature) == (built.info, built.report, built.signature)
    assert "100.0%" in str(opened.table().title)


def test_the_engine_knows_the_program_that_it_is_of(built: TensorRTArtifact) -> None:
    built.check_source(quantized())
    other = quantized().copy()
    other.set_tensor("head.weight", other.tensor("head.weight") * 1.01)
    with pytest.raises(ArchiveError, match="of another program"):
        built.check_source(other)
    with pytest.raises(ArchiveError, match="takes other inputs"):
        built.check_source(quantized("linears"))


def test_the_script_alone_builds_the_same_engine(tmp_path: Path) -> None:
    """As on another machine: the folder, python and the package, and nothing of tersor."""
    artifact = lower(quantized("linears"), TensorRT(builder=Builder.NONE), tmp_path)
    assert not (tmp_path / "model.engine").exists()
    assert any("build_engine.py" in note for note in artifact.report.notes)
    done = subprocess.run(
        [sys.executable, "-S", "-c", f"import sys; sys.path += {sys.path!r}; sys.modules['tersor'] = None\n"
         f"import runpy; sys.argv = ['x', {str(tmp_path)!r}]\n"
         f"runpy.run_path({str(tmp_path / 'build_engine.py')!r}, run_name='__main__')"],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    assert "built for 8.6, 8.9, 12.0" in done.stdout
    rows = [kernel for kernel in kernels_of_plan(tmp_path / "model.engine") if kernel.kind == "fully_connected"]
    assert [kernel.weight.dtype for kernel in rows if kernel.weight] == ["int8", "int8"]


@pytest.mark.parametrize("name", ["linears", "mixed"])
def test_float8_where_it_is_asked_for(name: str, tmp_path: Path) -> None:
    backend = TensorRT(precision=Precision.FLOAT8, compute_capabilities=("8.9", "12.0"))
    artifact = lower(quantized(name), backend, tmp_path)
    assert isinstance(artifact, TensorRTArtifact)
    assert {(row.weights, row.activations) for row in artifact.layers_run} == {("float8", "float8")}
    assert {row.why for row in artifact.layers_run} == {"as float8, which was asked for"}
    inputs = torch.randn(NETWORKS[name][1])
    exact = floats(name)(inputs).detach()
    assert difference([exact], [artifact.run_onnx(inputs)]).sqnr > 15
    feed = {artifact.signature.inputs[0].name: inputs.numpy()}
    evaluated: Any = ReferenceEvaluator(str(artifact.model)).run(None, feed)
    assert difference([torch.from_numpy(evaluated[0])], [artifact.run_onnx(inputs)]).sqnr > 30


def test_float8_is_refused_for_older_gpus(tmp_path: Path) -> None:
    with pytest.raises(LoweringError, match="could not build") as caught:
        lower(quantized("linears"), TensorRT(precision=Precision.FLOAT8), tmp_path)
    assert "float8 takes 8.9" in str(caught.value.hint)


@pytest.mark.parametrize(("bits", "weights"), [(4, "int4"), (8, "float32")])
def test_weights_in_blocks_are_read_in_four_bits(bits: int, weights: str, tmp_path: Path) -> None:
    """Eight bits are stored so, and a kernel of its own makes floats of them, which the audit tells."""
    program = QuantizeWeights(bits=bits, block=32)(floats("linears"))
    artifact = lower(program, "tensorrt", tmp_path)
    assert isinstance(artifact, TensorRTArtifact)
    assert {(row.weights, row.activations) for row in artifact.layers_run} == {(weights, "float32")}
    assert all("weights alone" in row.why for row in artifact.layers_run)
    assert {row.precision for row in artifact.report.audit} == {"w4" if bits == 4 else "float32"}
    assert artifact.report.integer_share == 0
    inputs = torch.randn(4, 64)
    torch.testing.assert_close(artifact.run_onnx(inputs), program(inputs).detach(), rtol=1e-4, atol=1e-5)


def test_blocks_with_zero_points_and_grids_of_the_moment_are_refused(tmp_path: Path) -> None:
    with pytest.raises(LoweringError, match="in blocks with zero points"):
        lower(QuantizeWeights(symmetric=False)(floats("linears")), "tensorrt", tmp_path)
    with pytest.raises(LoweringError, match="found at run time"):
        lower(QuantizeDynamic()(floats("linears")), "tensorrt", tmp_path)


def test_sparse_weights_set_the_flag_and_are_counted(tmp_path: Path) -> None:
    program = floats("linears").copy()
    for name in ("first.weight", "second.weight"):
        groups = program.tensor(name).detach().reshape(-1, 4)
        least = groups.abs().argsort(1)[:, :2]
        program.set_tensor(name, groups.scatter(1, least, 0).reshape(program.tensor(name).shape))
        program.sparsity[name] = NM(2, 4)
    sparse = Quantize(INT8_SYMMETRIC, calibration=[torch.randn(4, 64)], pair_safe=False)(program.verify())
    artifact = lower(sparse, "tensorrt", tmp_path)
    assert isinstance(artifact, TensorRTArtifact)
    assert json.loads((tmp_path / "build.json").read_text())["sparse"]
    (note,) = (note for note in artifact.report.notes if "sparse" in note)
    stored = sum(row.sparse for row in artifact.layers_run)
    assert note == f"2:4 sparse weights: 2, of which 2 have channels enough, and {stored} are stored sparse"
    lower(quantized("linears"), "tensorrt", tmp_path)
    assert not json.loads((tmp_path / "build.json").read_text())["sparse"]


@pytest.mark.parametrize("attention", Attention)
def test_attention_is_one_kernel_or_float32(attention: Attention, tmp_path: Path) -> None:
    class Attend(torch.nn.Module):
        def forward(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
            return torch.nn.functional.scaled_dot_product_attention(q, k, v)

    torch.manual_seed(0)
    parts = tuple(torch.randn(1, 4, 64, 32) for _ in range(3))
    program = trace(Attend(), parts)
    artifact = lower(program, TensorRT(attention=attention), tmp_path)
    assert isinstance(artifact, TensorRTArtifact)
    (row,) = artifact.layers_run
    fused = attention is Attention.FUSED
    assert ("mha" in row.kernel) is fused
    assert row.activations == ("float16" if fused else "float32")
    torch.testing.assert_close(artifact.run_onnx(*parts), program(*parts), rtol=2e-3, atol=2e-3)


def test_placement_is_exact_about_what_it_does_not_touch() -> None:
    once = SymmetrizeGrids()(quantized())
    assert not SymmetrizeGrids().run(once.copy()).modified
