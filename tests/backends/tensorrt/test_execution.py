"""Running an engine: the bindings against a stand-in that reads and writes the memory it was given, then the GPU."""

from __future__ import annotations

import ctypes
from enum import Enum
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import onnxruntime
import pytest
import torch
from torch import Tensor

from tersor.backends.tensorrt.artifact import TensorRTArtifact
from tersor.backends.tensorrt.backend import Builder, Sizes, TensorRT
from tersor.backends.tensorrt.execution import EngineRunner
from tersor.backends.tensorrt.layered import write_layered
from tersor.frontends.torch_export import trace
from tersor.ir.errors import ArchiveError, SignatureError
from tersor.lowering import lower
from tersor.passes.compare import difference

from .networks import floats, quantized

_NUMPY = {"FLOAT": np.float32, "INT64": np.int64, "INT32": np.int32, "BOOL": np.bool_}
_TYPES = {"tensor(float)": "FLOAT", "tensor(int64)": "INT64"}


class Mode(Enum):
    INPUT = 0
    OUTPUT = 1


TRT = SimpleNamespace(TensorIOMode=Mode)


class StandIn:
    """An engine and its context in the shape of TensorRT's, which computes by ONNX Runtime on raw addresses."""

    def __init__(self, model: Path, profiles: list[dict[str, list[tuple[int, ...]]]]) -> None:
        settings = onnxruntime.SessionOptions()
        settings.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
        self.session = onnxruntime.InferenceSession(str(model), settings, providers=["CPUExecutionProvider"])
        self.given, self.made = self.session.get_inputs(), self.session.get_outputs()
        self.profiles = profiles
        self.num_io_tensors = len(self.given) + len(self.made)
        self.num_optimization_profiles = max(len(profiles), 1)
        self.active_optimization_profile = 0
        self.chosen: list[int] = []
        self.addresses: dict[str, int] = {}
        self.shapes: dict[str, tuple[int, ...]] = {}
        self.fails = False

    # -- the engine

    def create_execution_context(self) -> StandIn:
        return self

    def get_tensor_name(self, index: int) -> str:
        return str([*self.given, *self.made][index].name)

    def get_tensor_mode(self, name: str) -> Mode:
        return Mode.INPUT if any(spec.name == name for spec in self.given) else Mode.OUTPUT

    def get_tensor_dtype(self, name: str) -> Any:
        return SimpleNamespace(name=_TYPES[self._spec(name).type])

    def get_tensor_profile_shape(self, name: str, index: int) -> list[tuple[int, ...]]:
        if not self.profiles:
            return [tuple(self._spec(name).shape)] * 3
        return self.profiles[index][name]

    def _spec(self, name: str) -> Any:
        return next(spec for spec in (*self.given, *self.made) if spec.name == name)

    # -- the context

    def get_tensor_shape(self, name: str) -> tuple[int, ...]:
        if name in self.shapes:
            return self.shapes[name]
        sizes = {d: s for spec in self.given for d, s in zip(spec.shape, self.shapes.get(spec.name, ()), strict=False)}
        return tuple(d if isinstance(d, int) else sizes.get(d, -1) for d in self._spec(name).shape)

    def set_input_shape(self, name: str, shape: tuple[int, ...]) -> bool:
        self.shapes[name] = shape
        return True

    def set_tensor_address(self, name: str, address: int) -> bool:
        self.addresses[name] = address
        return True

    def set_optimization_profile_async(self, index: int, stream: int) -> bool:
        self.chosen.append(index)
        self.active_optimization_profile = index
        return True

    def execute_async_v3(self, stream: int) -> bool:
        if self.fails:
            return False
        feed = {spec.name: self._array(spec.name) for spec in self.given}
        for spec, value in zip(self.made, self.session.run(None, feed), strict=True):
            self._array(spec.name)[...] = value
        return True

    def _array(self, name: str) -> Any:
        """The memory at a tensor's address, as it is."""
        shape, kind = self.get_tensor_shape(name), _NUMPY[_TYPES[self._spec(name).type]]
        size = int(np.prod(shape)) * np.dtype(kind).itemsize
        buffer: Any = (ctypes.c_char * size).from_address(self.addresses[name])
        return np.frombuffer(buffer, dtype=kind).reshape(shape)


@pytest.fixture
def dynamic(tmp_path: Path) -> TensorRTArtifact:
    artifact = lower(quantized(), TensorRT(builder=Builder.NONE), tmp_path)
    assert isinstance(artifact, TensorRTArtifact)
    return artifact


def batches(low: int, best: int, high: int) -> dict[str, list[tuple[int, ...]]]:
    return {"image": [(size, 3, 16, 16) for size in (low, best, high)]}


def test_inputs_and_outputs_are_bound_by_address_and_shape(dynamic: TensorRTArtifact) -> None:
    engine = StandIn(dynamic.model, [batches(1, 2, 8)])
    runner = EngineRunner(TRT, engine, device="cpu")
    assert (runner.inputs, runner.outputs, runner.static) == (["image"], ["output"], False)
    for size in (1, 5, 8):
        image = torch.randn(size, 3, 16, 16)
        (found,) = runner.run([image])
        torch.testing.assert_close(found, dynamic.run_onnx(image))
        assert engine.addresses["output"] == found.data_ptr()


def test_inputs_that_are_not_contiguous_are_made_so(dynamic: TensorRTArtifact) -> None:
    runner = EngineRunner(TRT, StandIn(dynamic.model, [batches(1, 2, 8)]), device="cpu")
    image = torch.randn(2, 16, 16, 3).permute(0, 3, 1, 2)
    (found,) = runner.run([image])
    torch.testing.assert_close(found, dynamic.run_onnx(image))


def test_the_first_profile_that_takes_the_shape_is_chosen(dynamic: TensorRTArtifact) -> None:
    engine = StandIn(dynamic.model, [batches(1, 1, 1), batches(2, 4, 8)])
    runner = EngineRunner(TRT, engine, device="cpu")
    for size in (1, 4, 8, 1):
        runner.run([torch.randn(size, 3, 16, 16)])
    assert engine.chosen == [1, 0]


def test_a_shape_that_no_profile_takes_is_refused(dynamic: TensorRTArtifact) -> None:
    runner = EngineRunner(TRT, StandIn(dynamic.model, [batches(1, 1, 1), batches(2, 4, 8)]), device="cpu")
    with pytest.raises(SignatureError, match="no optimization profile") as caught:
        runner.run([torch.randn(9, 3, 16, 16)])
    assert "(2, 3, 16, 16) to (8, 3, 16, 16)" in str(caught.value.expected)


def test_a_run_that_fails_is_an_error(dynamic: TensorRTArtifact) -> None:
    engine = StandIn(dynamic.model, [batches(1, 2, 8)])
    engine.fails = True
    with pytest.raises(ArchiveError, match="failed while running"):
        EngineRunner(TRT, engine, device="cpu").run([torch.randn(2, 3, 16, 16)])


def test_static_shapes_are_known_to_be(tmp_path: Path) -> None:
    artifact = lower(quantized("linears"), TensorRT(builder=Builder.NONE), tmp_path)
    assert isinstance(artifact, TensorRTArtifact)
    runner = EngineRunner(TRT, StandIn(artifact.model, []), device="cpu")
    assert runner.static
    x = torch.randn(4, 64)
    torch.testing.assert_close(runner.run([x])[0], artifact.run_onnx(x))


class Two(torch.nn.Module):
    """The middle input is read by nothing."""

    def forward(self, b: Tensor, unread: Tensor, a: Tensor) -> tuple[Tensor, Tensor]:
        return torch.tanh(b), a + 1


def test_inputs_and_outputs_are_the_program_s_by_name(tmp_path: Path) -> None:
    parts = torch.randn(2, 3), torch.randn(4), torch.randn(5)
    artifact = lower(trace(Two(), parts), TensorRT(builder=Builder.NONE), tmp_path)
    assert isinstance(artifact, TensorRTArtifact)
    engine = StandIn(artifact.model, [])
    engine.given = [spec for spec in engine.given if spec.name != "unread"][::-1]
    engine.made = engine.made[::-1]
    engine.num_io_tensors = 4
    engine.session = Reordered(engine.session, parts[1])
    names = [spec.name for spec in artifact.signature.inputs]
    found = EngineRunner(TRT, engine, names, artifact.signature.output_names, device="cpu").run(parts)
    torch.testing.assert_close(found[0], torch.tanh(parts[0]))
    torch.testing.assert_close(found[1], parts[2] + 1)
    with pytest.raises(ArchiveError, match="not the program's"):
        EngineRunner(TRT, engine, names[:2], artifact.signature.output_names, device="cpu")


class Reordered:
    """A session that gives its outputs in the stand-in's order and is fed what that leaves out."""

    def __init__(self, session: Any, unread: Tensor) -> None:
        self.session, self.unread = session, unread

    def run(self, names: None, feed: dict[str, Any]) -> list[Any]:
        return list(self.session.run(names, {**feed, "unread": self.unread.numpy()}))[::-1]


def test_every_float_value_can_be_an_output(dynamic: TensorRTArtifact, tmp_path: Path) -> None:
    """Layer by layer, as far as no GPU is needed: the values of the file that gives them all are the program's."""
    folder = tmp_path / "layered"
    folder.mkdir()
    runner = EngineRunner(TRT, StandIn(write_layered(dynamic.model, folder), [batches(1, 2, 8)]), device="cpu")
    image = torch.randn(2, 3, 16, 16)
    found = dict(runner.run_named([image]))
    computed: dict[str, Tensor] = {}

    class Recorder(torch.fx.Interpreter):
        def run_node(self, n: torch.fx.Node) -> Any:
            computed[n.name] = super().run_node(n)
            return computed[n.name]

    program = quantized()
    Recorder(program.module).run(image)
    shared = found.keys() & computed.keys()
    assert {"conv2d", "silu", "add", "conv2d_3", "cat"} <= shared
    assert not any("weight" in name for name in found)
    for name in ("conv2d", "conv2d_1", "silu", "conv2d_2"):
        assert difference([computed[name].detach()], [found[name]]).sqnr > 25, name


# -- on a GPU --------------------------------------------------------------------------------------------------------


@pytest.mark.gpu
@pytest.mark.parametrize("name", ["mixed", "linears"])
def test_the_engine_gives_what_the_program_gives(name: str, tmp_path: Path) -> None:
    artifact = lower(quantized(name), "tensorrt", tmp_path)
    assert isinstance(artifact, TensorRTArtifact)
    shape = artifact.signature.inputs[0].shape
    inputs = torch.randn([size if isinstance(size, int) else 2 for size in shape])
    expected = quantized(name)(inputs).detach()
    for where in ("cpu", "cuda"):
        for _ in range(3):  # the first captures a CUDA graph, the others replay it
            found = artifact.run(inputs.to(where))
            assert found.device.type == where
            assert difference([expected], [found.cpu()]).sqnr > 30
    assert artifact.latency([inputs]) > 0


@pytest.mark.gpu
def test_layers_are_compared_on_the_gpu(tmp_path: Path) -> None:
    artifact = lower(quantized(), "tensorrt", tmp_path)
    image = torch.randn(2, 3, 16, 16)
    found = dict(artifact.layers([image]))
    assert {"conv2d", "silu", "add"} <= set(found)


@pytest.mark.gpu
def test_the_inspector_agrees_with_the_plan(tmp_path: Path) -> None:
    profiles = ({"batch": Sizes(1, 2, 8)},)
    artifact = lower(quantized(), TensorRT(profiles=profiles), tmp_path)
    assert isinstance(artifact, TensorRTArtifact)
    assert artifact.integer_share() == 1.0


@pytest.mark.gpu
def test_a_float_engine_gives_what_the_program_gives(tmp_path: Path) -> None:
    artifact = lower(floats(), "tensorrt", tmp_path)
    image = torch.randn(2, 3, 16, 16)
    assert difference([floats()(image).detach()], [artifact.run(image)]).sqnr > 40
