"""PyTorch -> tersor -> ONNX -> tersor: the same program comes back, again and again."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import Phase, given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from tersor.backends.onnxruntime.backend import OnnxRuntime
from tersor.frontends.onnx.load import load_onnx
from tersor.frontends.torch_export import trace
from tersor.ir.operators import FAKE_QUANTIZE, FAKE_QUANTIZE_BIAS
from tersor.ir.program import Program
from tersor.ir.quantization import INT8, W4A8, Scheme
from tersor.ir.stage import Stage
from tersor.passes.canonical.canonicalize import Canonicalize
from tersor.passes.manager import PassManager
from tersor.passes.quantization.quantize import Quantize

from ...small_transformers import MODELS, built, other_sizes, traced

aten = torch.ops.aten
attend = F.scaled_dot_product_attention


def through_onnx(program: Program, folder: Path) -> Program:
    """Written as ONNX and read again."""
    OnnxRuntime(audit=False).emit(program, folder)
    return load_onnx(folder / "model.onnx").verify()


def operators(program: Program) -> Counter[str]:
    return Counter(str(node.target) for node in program.graph.nodes if node.op == "call_function")


WEIGHTED = ("conv", "linear")
WHOLE = (*WEIGHTED, "norm", "scaled_dot_product_attention", "embedding", "softmax", "gelu", "silu", "pool")


def some(program: Program, words: tuple[str, ...]) -> dict[str, int]:
    """How often each operator stands there whose name holds one of the words."""
    return {name: count for name, count in operators(program).items() if any(word in name for word in words)}


def assert_same_outputs(expected: Program, found: Program, inputs: list[Tensor]) -> None:
    with torch.no_grad():
        for ours, theirs in zip(expected.run(inputs), found.run(inputs), strict=True):
            assert (ours - theirs).abs().max() <= 2e-6 + 1e-5 * ours.abs().max()


# -- Float -------------------------------------------------------------------------------------------------------------


@cache
def trips(name: str) -> tuple[Program, Program, Program]:
    """The program after one, two and three trips."""
    program, found = traced(name, dynamic=True), []
    for _ in range(3):
        with TemporaryDirectory() as folder:
            program = through_onnx(program, Path(folder))
        found.append(program)
    return found[0], found[1], found[2]


@pytest.mark.parametrize("name", MODELS)
def test_a_model_comes_back(name: str) -> None:
    """The first trip spells some operators otherwise, as ONNX has no others; the second and third change nothing."""
    program, inputs = traced(name, dynamic=True), other_sizes(name)
    first, second, third = trips(name)
    assert_same_outputs(program, first, inputs)
    assert_same_outputs(program, third, inputs)
    assert some(program, WEIGHTED) == some(first, WEIGHTED)
    assert operators(first) == operators(second) == operators(third)
    assert [node.name for node in second.graph.nodes] == [node.name for node in third.graph.nodes]


MORE_NODES = {"llama": 1.15, "deepseek": 1.05}
"""Canonical nodes after a trip over those before: diff, ne and indices of several axes are several nodes in ONNX."""


@pytest.mark.parametrize("name", MODELS)
def test_canonical_forms_are_the_same(name: str) -> None:
    """Attention, norms, activations: written out in ONNX, recovered by Canonicalize."""
    program, inputs = traced(name, dynamic=True), other_sizes(name)
    before, after = Canonicalize()(program), Canonicalize()(trips(name)[0])
    assert some(before, WHOLE) == some(after, WHOLE)
    assert len(after.graph.nodes) <= MORE_NODES.get(name, 1.0) * len(before.graph.nodes)
    assert_same_outputs(program, after, inputs)


@pytest.mark.parametrize("name", MODELS)
def test_names_and_dynamic_dimensions_are_kept(name: str) -> None:
    program, found = traced(name, dynamic=True), trips(name)[0]
    assert found.signature.inputs == program.signature.inputs
    assert found.signature.dims.keys() == program.signature.dims.keys()
    assert found.signature.output_names == program.signature.output_names
    assert len(found.parameters()) == len({id(tensor) for tensor in program.parameters().values()})
    for parameter, tensor in found.parameters().items():
        assert torch.equal(tensor, program.tensor(parameter))


class Net(nn.Module):
    """Layers one after another on 4 channels of images."""

    def __init__(self, layers: list[str], seed: int) -> None:
        super().__init__()
        torch.manual_seed(seed)
        self.layers = layers
        self.convolutions = nn.ModuleList(nn.Conv2d(4, 4, 3, padding=1, groups=seed % 2 + 1) for _ in layers)
        self.linears = nn.ModuleList(nn.Linear(9, 9, bias=seed % 3 > 0) for _ in layers)
        self.norms = nn.ModuleList(nn.GroupNorm(2, 4) if seed % 2 else nn.BatchNorm2d(4) for _ in layers)
        self.table = nn.Parameter(torch.randn(1, 4, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        for index, layer in enumerate(self.layers):
            x = self.step(layer, index, x)
        return x

    def step(self, layer: str, index: int, x: Tensor) -> Tensor:
        heads: Callable[[], Tensor] = lambda: x.flatten(2).transpose(1, 2).unsqueeze(1)  # noqa: E731
        steps: dict[str, Callable[[], Tensor]] = {
            "conv": lambda: torch.relu(self.convolutions[index](x)),
            "linear": lambda: self.linears[index](x),
            "norm": lambda: self.norms[index](x),
            "layer_norm": lambda: F.layer_norm(x, (9,)),
            "rms_norm": lambda: F.rms_norm(x, (9,)),
            "attention": lambda: attend(heads(), heads(), heads()).transpose(2, 3).reshape(x.shape),
            "causal": lambda: attend(x, x, x, is_causal=True),
            "table": lambda: x + self.table.expand(x.shape[0], -1, 9, 9),
            "pool": lambda: F.max_pool2d(F.pad(x, (1, 1, 1, 1)), 3, 1),
            "mean": lambda: x - x.mean((2, 3), keepdim=True) * x.mean(-1, keepdim=True),
            "split": lambda: torch.cat(x.split([1, 3], 1)[::-1], 1),
            "index": lambda: x[:, torch.tensor([1, 0, 3, 2])],
            "silu": lambda: F.silu(x) * torch.rsqrt(x.square() + 1),
            "gelu": lambda: F.gelu(x).clamp(-1, 2),
        }  # fmt: skip
        return steps[layer]()


LAYERS = st.sampled_from(
    [
        "conv",
        "linear",
        "norm",
        "layer_norm",
        "rms_norm",
        "attention",
        "causal",
        "table",
        "pool",
        "mean",
        "split",
        "index",
        "silu",
        "gelu",
    ]
)


@settings(max_examples=8, deadline=None, database=None, phases=[Phase.generate, Phase.shrink])
@given(layers=st.lists(LAYERS, min_size=1, max_size=6), seed=st.integers(0, 50), dynamic=st.booleans())
def test_random_networks_come_back(
    layers: list[str], seed: int, dynamic: bool, tmp_path_factory: pytest.TempPathFactory
) -> None:
    folder = tmp_path_factory.mktemp("net")
    program = trace(
        Net(layers, seed).eval(), (torch.randn(2, 4, 9, 9),), dynamic={"x": {0: "batch"}} if dynamic else None
    )
    first = through_onnx(program, folder / "1")
    second = through_onnx(first, folder / "2")
    inputs = [torch.randn(3 if dynamic else 2, 4, 9, 9)]
    assert_same_outputs(program, first, inputs)
    assert_same_outputs(program, second, inputs)
    assert some(program, WEIGHTED) == some(first, WEIGHTED)
    assert operators(first) == operators(second)


# -- Quantized ---------------------------------------------------------------------------------------------------------


def quantized(name: str, scheme: Scheme) -> tuple[Program, list[Tensor]]:
    program, inputs = traced(name, dynamic=True), other_sizes(name)
    return PassManager([Quantize(scheme, calibration=[built(name)[1]])], progress=False).run(program).program, inputs


def grids(program: Program) -> Counter[tuple[Any, ...]]:
    """Every fake-quantize by its scale, zero point, axis and bounds."""
    found: Counter[tuple[Any, ...]] = Counter()
    for node in program.graph.nodes:
        if node.target is FAKE_QUANTIZE:
            scale, zero = (program.constant(argument) for argument in node.args[1:3])
            assert scale is not None
            assert zero is not None
            grid = (tuple(scale.flatten().tolist()), tuple(zero.flatten().tolist()))
            found[grid + node.args[3:]] += 1
    return found


@pytest.mark.parametrize("name", MODELS)
def test_a_quantized_model_comes_back(name: str, tmp_path: Path) -> None:
    check_quantized(*quantized(name, INT8), tmp_path)


@pytest.mark.parametrize("name", ["resnet", "bert"])
def test_a_model_with_4_bit_weights_comes_back(name: str, tmp_path: Path) -> None:
    check_quantized(*quantized(name, W4A8), tmp_path)


def check_quantized(program: Program, inputs: list[Tensor], folder: Path) -> None:
    """The same grids, the same outputs of the program, and from it a file that gives the same bits."""
    artifact = OnnxRuntime(audit=False).emit(program, folder / "1")
    found = load_onnx(folder / "1" / "model.onnx").verify()
    assert found.stage is Stage.FAKE_QUANT
    assert grids(found) == grids(program)
    assert some(found, WEIGHTED) == some(program, WEIGHTED)
    biases = [str(FAKE_QUANTIZE_BIAS)]
    assert [operators(found)[name] for name in biases] == [operators(program)[name] for name in biases]
    assert_same_outputs(program, found, inputs)
    again = OnnxRuntime(audit=False).emit(found, folder / "2")
    for ours, theirs in zip(artifact.run_flat(inputs), again.run_flat(inputs), strict=True):
        assert torch.equal(ours, theirs)
    assert operators(load_onnx(folder / "2" / "model.onnx")) == operators(found)
