"""What goes wrong is told in the program's terms, and leaves what was there."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Callable
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import onnx
import pytest
import torch
from torch import Tensor, nn

from tersor.backends.onnx.emit import emit_model
from tersor.backends.registry import TARGETS
from tersor.backends.tensorrt import artifact as artifact_module
from tersor.backends.tensorrt import emit as emit_module
from tersor.backends.tensorrt.artifact import TensorRTArtifact
from tersor.backends.tensorrt.backend import Builder, Sizes, TensorRT
from tersor.backends.tensorrt.build_engine import INSTALL, find_package, gpu_capability, is_installed
from tersor.backends.tensorrt.engine_file import EngineInfo, misfits
from tersor.frontends.torch_export import trace
from tersor.ir.errors import ArchiveError, LoweringError, MissingDependencyError
from tersor.ir.program import Program
from tersor.ir.signature import Range
from tersor.lowering import lower

from .networks import floats, quantized

no_gpu = pytest.mark.skipif(gpu_capability() is not None, reason="says what happens without a GPU")
Damage = Callable[[Path], Any]


@pytest.fixture
def linears(tmp_path: Path) -> TensorRTArtifact:
    built = lower(quantized("linears"), "tensorrt", tmp_path)
    assert isinstance(built, TensorRTArtifact)
    return built


# -- the builder -----------------------------------------------------------------------------------------------------


def test_what_the_builder_refuses_is_told_with_the_node_and_the_line(tmp_path: Path) -> None:
    """Turing lacks a kernel for this one, which is a builder's error after parsing."""
    with pytest.raises(LoweringError) as caught:
        lower(quantized("linears"), TensorRT(compute_capabilities=("7.5",)), tmp_path)
    assert caught.value.node in ("linear", "linear_1")
    assert "Turing (SM75)" in str(caught.value.found)
    assert "networks.py" in str(caught.value)
    assert "out: Tensor = self.second(torch.relu(self.first(x)))" in str(caught.value)
    assert "8.0 or newer" in str(caught.value.hint)
    assert list(tmp_path.iterdir()) == []


def test_what_the_parser_refuses_is_told_with_the_node_and_the_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A rule that writes an operator with an attribute that the parser refuses."""

    def broken(program: Program, options: object) -> onnx.ModelProto:
        model: onnx.ModelProto = original(program, options)
        node = next(n for n in model.graph.node if n.name == "linear_1")
        node.op_type = "StringNormalizer"
        del node.input[1:], node.attribute[:]
        return model

    original: Any = emit_model
    monkeypatch.setattr(emit_module, "emit_model", broken)
    monkeypatch.setattr(emit_module, "write_model", lambda model, folder, **_: [_written(model, folder)])
    with pytest.raises(LoweringError, match="parser does not take StringNormalizer") as caught:
        lower(quantized("linears"), "tensorrt", tmp_path)
    assert caught.value.node == "linear_1"
    assert "networks.py" in str(caught.value)


def _written(model: Any, folder: Path) -> Path:
    path = folder / "model.onnx"
    path.write_bytes(model.SerializeToString())
    return path


def test_a_capability_that_nobody_knows_is_refused(tmp_path: Path) -> None:
    with pytest.raises(LoweringError, match="does not know SM991"):
        lower(quantized("linears"), TensorRT(compute_capabilities=("99.1",)), tmp_path)


def test_a_builder_that_crashes_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(emit_module, "_write_script", _crashing_script)
    with pytest.raises(LoweringError, match="builder crashed") as caught:
        lower(quantized("linears"), "tensorrt", tmp_path)
    assert "-11" in str(caught.value.found)
    assert list(tmp_path.iterdir()) == []


def _crashing_script(folder: Path, request: object) -> list[Path]:
    script = folder / "build_engine.py"
    script.write_text("import os, signal; os.kill(os.getpid(), signal.SIGSEGV)")
    return [script]


def test_an_interrupt_leaves_what_was_there(linears: TensorRTArtifact, monkeypatch: pytest.MonkeyPatch) -> None:
    before = {path.name: path.read_bytes() for path in linears.path.iterdir()}

    def interrupt(*_: Any, **__: Any) -> Any:
        raise KeyboardInterrupt

    monkeypatch.setattr(subprocess, "run", interrupt)
    with pytest.raises(KeyboardInterrupt):
        lower(quantized(), "tensorrt", linears.path)
    assert {path.name: path.read_bytes() for path in linears.path.iterdir()} == before


def test_without_a_builder_there_is_a_script_and_the_line_to_install(
    tmp_path: Path, linears: TensorRTArtifact, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(emit_module, "is_installed", lambda *_: False)
    artifact = lower(quantized("linears"), "tensorrt", linears.path)
    assert isinstance(artifact, TensorRTArtifact)
    assert {path.name for path in linears.path.iterdir()} == {
        "model.onnx", "build_engine.py", "build.json", "artifact.json",
    }  # fmt: skip
    assert any(INSTALL in note for note in artifact.report.notes)
    assert artifact.report.audit == ()
    x = torch.randn(4, 64)
    with pytest.raises(LoweringError, match="no engine was built") as caught:
        artifact.run(x)
    assert INSTALL in str(caught.value.hint)
    assert artifact.run_onnx(x).shape == (4, 64)
    assert TensorRT.open(linears.path).info is None


# -- options ---------------------------------------------------------------------------------------------------------

WRONG: dict[str, tuple[Callable[[], Any], str]] = {
    "capability": (lambda: TensorRT(compute_capabilities=("sm86",)), "not compute capabilities"),
    "no capability": (lambda: TensorRT(compute_capabilities=()), "not compute capabilities"),
    "sizes": (lambda: Sizes(4, 2, 8), "impossible sizes"),
    "no sizes": (lambda: Sizes(0, 2, 8), "impossible sizes"),
    "workspace": (lambda: TensorRT(workspace=-1), "number of bytes"),
    "profiles": (lambda: TensorRT(profiles=()), "no optimization profile"),
}


@pytest.mark.parametrize("name", WRONG)
def test_options_that_make_no_sense_are_refused(name: str) -> None:
    make, message = WRONG[name]
    with pytest.raises(LoweringError, match=message):
        make()


def test_profiles_follow_the_dynamic_dimensions(tmp_path: Path) -> None:
    profiles = ({"batch": Sizes(1, 1, 1)}, {"batch": Sizes(2, 8, 32)})
    built = lower(quantized(), TensorRT(profiles=profiles), tmp_path)
    assert isinstance(built, TensorRTArtifact)
    assert built.info is not None
    ends = [[shape[0] for shape in profile["image"]] for profile in built.info.profiles]
    assert ends == [[1, 1, 1], [2, 8, 32]]
    usual = json.loads((tmp_path / "build.json").read_text())["profiles"]
    assert [shape[1:] for shape in usual[0]["image"]] == [[3, 16, 16]] * 3


def test_a_profile_of_no_dimension_is_refused(tmp_path: Path) -> None:
    with pytest.raises(LoweringError, match="'length' is not a dynamic dimension") as caught:
        lower(quantized(), TensorRT(profiles=({"length": Sizes(1, 1, 1)},)), tmp_path)
    assert caught.value.expected == "batch"


def test_a_profile_beyond_the_program_is_refused(tmp_path: Path) -> None:
    program = floats().copy()
    program.signature = replace(program.signature, dims={"batch": Range(2, 6)})
    with pytest.raises(LoweringError, match="beyond what the program takes"):
        lower(program, TensorRT(profiles=({"batch": Sizes(1, 2, 6)},)), tmp_path)
    built = lower(program, TensorRT(), tmp_path)
    assert isinstance(built, TensorRTArtifact)
    assert built.info is not None
    assert [shape[0] for shape in built.info.profiles[0]["image"]] == [2, 2, 6]


# -- support ---------------------------------------------------------------------------------------------------------


def test_types_that_tensorrt_lacks_are_refused_before_anything_is_written(tmp_path: Path) -> None:
    class Double(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return torch.relu(x.double())

    program = trace(Double(), (torch.randn(3),))
    refused = TensorRT().unsupported(program)
    assert [(reason.node, reason.reason) for reason in refused][-1] == ("relu", "TensorRT has no float64")
    node = next(node for node in program.graph.nodes if node.name == "relu")
    assert TensorRT().supports(program, node) == refused[-1]
    with pytest.raises(LoweringError, match="no float64"):
        lower(program, "tensorrt", tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_zero_points_that_were_not_re_expressed_are_refused() -> None:
    refused = TensorRT().unsupported(quantized(scheme="int8"))
    assert any("SymmetrizeGrids" in str(reason) for reason in refused)
    assert TensorRT().unsupported(floats()) == []


def test_activations_of_four_bits_are_refused(tmp_path: Path) -> None:
    with pytest.raises(LoweringError, match="not of all 8 bits"):
        lower(quantized("linears", "int4"), "tensorrt", tmp_path)


# -- running and opening ---------------------------------------------------------------------------------------------


@no_gpu
def test_without_a_gpu_running_says_so_and_offers_the_onnx_file(linears: TensorRTArtifact) -> None:
    with pytest.raises(MissingDependencyError, match="cannot run here") as caught:
        linears.run(torch.randn(4, 64))
    assert "there is no NVIDIA GPU here" in str(caught.value.found)
    assert "run_onnx" in str(caught.value.hint)
    with pytest.raises(MissingDependencyError):
        next(iter(linears.layers([torch.randn(4, 64)])))


def test_a_gpu_that_does_not_fit_is_named(linears: TensorRTArtifact, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(artifact_module, "gpu_capability", lambda: "7.5")
    with pytest.raises(ArchiveError, match="does not fit") as caught:
        linears.run(torch.randn(4, 64))
    assert "8.6, 8.9, 12.0, and the GPU here has 7.5" in str(caught.value.found)


def test_a_gpu_that_rtx_does_not_serve_is_told_what_would(
    linears: TensorRTArtifact, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As an H100 is; without this, TensorRT's own refusal came after the engine was loaded, with advice that fails."""
    monkeypatch.setattr(artifact_module, "gpu_capability", lambda: "9.0")
    with pytest.raises(ArchiveError, match="does not fit") as caught:
        linears.run(torch.randn(4, 64))
    assert "GPU here has 9.0" in str(caught.value.found)
    assert "full TensorRT" in str(caught.value.hint)


INFO = EngineInfo("tensorrt_rtx", "1.7.1", ("8.6", "12.0"), None, "digest", 1.0, (), ())
FULL = EngineInfo("tensorrt", "10.16.0", ("8.9",), "8.9", "digest", 1.0, (), ())
FITS: dict[str, tuple[EngineInfo, tuple[str | None, str | None, str | None], list[str]]] = {
    "fits": (INFO, ("tensorrt_rtx", "1.7.1", "8.6"), []),
    "newer gpu": (INFO, ("tensorrt_rtx", "1.7.1", "8.9"), []),
    "two digits": (INFO, ("tensorrt_rtx", "1.7.1", "12.1"), []),
    "older gpu": (INFO, ("tensorrt_rtx", "1.7.1", "8.0"), ["built for 8.6, 12.0, and the GPU here has 8.0"]),
    "hopper": (INFO, ("tensorrt_rtx", "1.7.1", "9.0"), ["runs on 7.5 to 8.9 and 12.x, and the GPU here has 9.0"]),
    "version": (INFO, ("tensorrt_rtx", "1.8.0", "8.6"), ["built by tensorrt_rtx 1.7.1, and 1.8.0 is installed"]),
    "package": (INFO, ("tensorrt", "10.16", "8.6"), ["and tensorrt is installed"]),
    "nothing": (INFO, (None, None, None), ["no TensorRT is installed", "no NVIDIA GPU"]),
    "full": (FULL, ("tensorrt", "10.16.0", "8.9"), []),
    "full elsewhere": (FULL, ("tensorrt", "10.16.0", "9.0"), ["built for 8.9, and the GPU here has 9.0"]),
}


@pytest.mark.parametrize("name", FITS)
def test_what_does_not_fit_is_said(name: str) -> None:
    info, here, expected = FITS[name]
    found = misfits(info, *here)
    assert len(found) == len(expected)
    assert all(text in line for text, line in zip(expected, found, strict=True))


DAMAGE: dict[str, tuple[Damage, str]] = {
    "engine cut short": (lambda f: (f / "model.engine").write_bytes((f / "model.engine").read_bytes()[:99]), "not the"),
    "engine gone": (lambda f: (f / "model.engine").unlink(), "lacks model.engine"),
    "description gone": (lambda f: (f / "engine.json").unlink(), "lacks engine.json"),
    "description damaged": (lambda f: (f / "engine.json").write_text("{"), "not the file"),
    "onnx changed": (lambda f: (f / "model.onnx").write_bytes(b"x"), "not the file"),
}


@pytest.mark.parametrize("name", DAMAGE)
def test_a_damaged_artifact_is_said_to_be_one(name: str, linears: TensorRTArtifact) -> None:
    damage, message = DAMAGE[name]
    damage(linears.path)
    with pytest.raises(ArchiveError, match=message):
        TensorRT.open(linears.path)


@pytest.mark.parametrize("text", ["[]", "{}", '{"format": 99}', '{"format": 1, "layers": 3}', "\x00"])
def test_a_description_of_another_form_is_refused(text: str, tmp_path: Path) -> None:
    from tersor.backends.tensorrt.engine_file import read_info

    (tmp_path / "engine.json").write_text(text)
    with pytest.raises(ArchiveError):
        read_info(tmp_path)


@no_gpu
def test_a_plan_that_cannot_be_loaded_gives_tensorrt_s_reason(linears: TensorRTArtifact, tmp_path: Path) -> None:
    from tersor.backends.tensorrt.execution import load_engine

    trt = find_package("tensorrt_rtx", gpu=False)
    for content in (b"x" * 4096, linears.engine.read_bytes()[:5000]):
        path = tmp_path / "bad.engine"
        path.write_bytes(content)
        with pytest.raises(ArchiveError, match="cannot load") as caught:
            load_engine(trt, path)
        assert "Serialization" in str(caught.value.found)


def test_the_target_is_listed() -> None:
    assert TARGETS.find("tensorrt") is TensorRT


def test_the_builder_of_choice_needs_a_gpu_only_for_full_tensorrt() -> None:
    assert find_package("none", gpu=True) is None
    rtx = find_package("auto", gpu=False)
    assert rtx is not None
    assert rtx.__name__ == "tensorrt_rtx"
    assert is_installed("auto", gpu=False)
    assert not is_installed(Builder.TENSORRT.value, gpu=True) or find_spec("tensorrt")
