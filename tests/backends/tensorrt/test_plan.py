"""What is read from a plan's bytes, against what the builder itself says of its layers."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
import tensorrt_rtx as trt

from tersor.backends.tensorrt.backend import Builder, TensorRT
from tersor.backends.tensorrt.inspector import kernels_of_inspector
from tersor.backends.tensorrt.kernels import Kernel, Port, dtype_of
from tersor.backends.tensorrt.plan import kernels_of_plan
from tersor.lowering import lower

from .networks import quantized

_LAYER = re.compile(r"^(?:Name: )?(?P<name>\S+), LayerType: (?P<kind>\w+), (?P<rest>.*)$", re.M)


class Log(trt.ILogger):  # type: ignore[misc]  # not typed
    def __init__(self) -> None:
        trt.ILogger.__init__(self)
        self.lines: list[str] = []

    def log(self, severity: Any, text: str) -> None:
        self.lines.append(text)


def described(folder: Path) -> dict[str, tuple[list[str], list[str], list[str]]]:
    """By kernel: the types of inputs, constants and outputs, as the builder's log lists its layers."""
    log = Log()
    builder = trt.Builder(log)
    network = builder.create_network(0)
    assert trt.OnnxParser(network, log).parse_from_file(str(folder / "model.onnx"))
    config = builder.create_builder_config()
    config.profiling_verbosity = trt.ProfilingVerbosity.DETAILED
    config.num_compute_capabilities = 1
    config.set_compute_capability(trt.ComputeCapability.SM86, 0)
    for shapes in json.loads((folder / "build.json").read_text())["profiles"]:
        profile = builder.create_optimization_profile()
        for name, ends in shapes.items():
            profile.set_shape(name, *ends)
        config.add_optimization_profile(profile)
    plan = builder.build_serialized_network(network, config)
    (folder / "told.engine").write_bytes(plan)
    (layers,) = (line for line in log.lines if line.startswith("Layers:"))
    found = {}
    for match in _LAYER.finditer(layers):
        parts = [re.findall(r"Datatype: (\w+)", part) for part in re.split(r"Constants: |Outputs: ", match["rest"])]
        name = re.sub(r"_myl\d+_\d+$", "", match["name"])
        found[name] = tuple([dtype_of(word) for word in part] for part in parts)
    return found  # type: ignore[return-value]  # three parts each


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("plan")
    lower(quantized(), TensorRT(builder=Builder.NONE), out)
    return out


def test_types_are_those_that_the_builder_lists(folder: Path) -> None:
    told = described(folder)
    kernels = {kernel.name: kernel for kernel in kernels_of_plan(folder / "told.engine")}
    products = {name for name in kernels if name.startswith(("conv2d", "linear"))}
    assert len(products) == 5
    assert products <= set(told)
    for name in products:
        inputs, constants, outputs = told[name]
        kernel = kernels[name]
        assert [port.dtype for port in kernel.activations] == inputs
        assert sorted(port.dtype for port in kernel.inputs if port.constant) == sorted(constants)
        assert [port.dtype for port in kernel.outputs] == outputs


def test_every_kernel_names_onnx_nodes(folder: Path) -> None:
    described(folder)
    kernels = kernels_of_plan(folder / "told.engine")
    layers = {layer for kernel in kernels for layer in kernel.layers}
    assert {"conv2d", "conv2d_1", "conv2d_2", "conv2d_3", "linear"} <= layers
    assert all(kernel.layers for kernel in kernels)
    assert len(set(kernels)) == len(kernels)


@pytest.mark.parametrize("content", [b"", b"no plan at all", b"header {\n" * 1000, bytes(range(256)) * 64])
def test_bytes_that_are_no_plan_hold_no_kernels(content: bytes, tmp_path: Path) -> None:
    path = tmp_path / "model.engine"
    path.write_bytes(content)
    assert kernels_of_plan(path) == ()


def test_a_plan_cut_short_is_read_up_to_the_cut(folder: Path, tmp_path: Path) -> None:
    described(folder)
    whole = (folder / "told.engine").read_bytes()
    path = tmp_path / "model.engine"
    for length in range(0, len(whole), len(whole) // 7):
        path.write_bytes(whole[:length])
        assert set(kernels_of_plan(path)) <= set(kernels_of_plan(folder / "told.engine"))


MODULE = """header {
  version = 4
}
descriptors {
  tensor={ alignment=128 const_payload_size=1024 dims={ 64 32 } name="w" offset=0 type=int8 }
  tensor={ alignment=128 dims={ "batch.1" 32 } name="x" offset=0 type=int8 }
  tensor={ alignment=128 dims={ "batch.1" 64 } name="y" offset=0 type=half }
}
main {
 label bb1:
  copy={ name="copy" output={"y" } input={"x" } stream=0 layers="[ONNX Layer: no]" }
  fully_connected={ name="a b" output={"y" } input={"x" "w" } stream=0 layers="[ONNX Layer: linear/Gemm]
[ONNX Layer: linear]" }
}
"""


def test_a_plan_s_text_is_read_as_it_is_written(tmp_path: Path) -> None:
    """A hand-written text in the plan's form; the weight takes half the bytes of its values: it is stored sparse."""
    path = tmp_path / "model.engine"
    path.write_bytes(b"\x00\xff" + MODULE.encode() + b"\x00")
    weight = Port("w", "int8", (64, 32), 1024)
    x, y = Port("x", "int8", (None, 32)), Port("y", "float16", (None, 64))
    expected = Kernel("fully_connected", "a b", (x, weight), (y,), ("linear/Gemm", "linear"))
    assert kernels_of_plan(path) == (expected,)
    assert weight.sparse
    assert not Port("w", "int8", (64, 32), 2048).sparse


# -- the inspector ---------------------------------------------------------------------------------------------------

INSPECTED: dict[str, Any] = {
    "Layers": [
        {
            "Name": "conv1 + relu", "LayerType": "CaskConvolution",
            "Inputs": [{"Name": "x", "Dimensions": [1, 64, 56, 56],
                        "Format/Datatype": "Channel major INT8 format where channel % 32 == 0"}],
            "Outputs": [{"Name": "y", "Dimensions": [1, 64, 56, 56], "Format/Datatype": "Row major FP16 format"}],
            "OutMaps": 64, "Weights": {"Type": "Int8", "Count": 36864}, "HasSparseWeights": 1,
            "Metadata": "[ONNX Layer: conv2d]\x1e[ONNX Layer: relu]",
        },
        {
            "Name": "linear_myl0_1", "LayerType": "gemm", "Metadata": "[ONNX Layer: linear/Gemm]",
            "Inputs": [{"Name": "a", "Dimensions": [-1, 64], "Datatype": "Int8", "Format": "(Linear) Row major"}],
            "Constants": [{"Name": "w", "Dimensions": [64, 10], "Datatype": "Int8"}],
            "Outputs": [{"Name": "b", "Dimensions": [-1, 10], "Datatype": "Float"}],
        },
        {"Name": "reformat", "LayerType": "Reformat", "Metadata": "", "Inputs": [], "Outputs": []},
        "terse",
    ],
    "Bindings": ["x"],
}  # fmt: skip


def test_the_inspector_s_layers_are_read_in_both_of_its_forms() -> None:
    conv, linear = kernels_of_inspector(INSPECTED)
    assert conv.layers == ("conv2d", "relu")
    assert [port.dtype for port in (*conv.activations, *conv.outputs)] == ["int8", "float16"]
    assert conv.weight is not None
    assert (conv.weight.dtype, conv.weight.shape, conv.weight.sparse) == ("int8", (64, 576), True)
    assert linear.weight is not None
    assert (linear.weight.dtype, linear.weight.sparse) == ("int8", False)
    assert linear.activations[0] == Port("a", "int8", (None, 64))


def test_an_inspector_that_says_nothing_gives_nothing() -> None:
    assert kernels_of_inspector({}) == ()
    assert kernels_of_inspector({"Layers": ["conv2d", "linear"]}) == ()
