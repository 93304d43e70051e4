"""A model through PyTorch's door and through ONNX's: after Canonicalize both are the same graph.

The files come from torch.onnx, as a user exports them. Batch norms are folded on both sides, since the exporter folds
them. What is left of a difference is the exporter's own, and stated.
"""

from __future__ import annotations

import copy
import logging
from collections import Counter
from pathlib import Path
from typing import Any

import onnxruntime
import pytest
import torch
from torch import Tensor, nn

from tersor.frontends.onnx.load import load_onnx
from tersor.frontends.torch_export import trace
from tersor.ir.program import Program
from tersor.passes.canonical.canonicalize import Canonicalize
from tersor.passes.rewriting.fold_batchnorm import FoldBatchNorm

from ...small_transformers import MODELS, built, traced

OPERATORS: dict[str, dict[str, int]] = {
    "resnet": {"conv2d": 8, "linear": 1, "max_pool2d": 1, "adaptive_avg_pool2d": 1},
    "mobilenet": {"conv2d": 52, "linear": 1, "hardtanh": 35, "adaptive_avg_pool2d": 1},
    "vit": {"conv2d": 1, "linear": 13, "layer_norm": 5, "gelu": 2, "scaled_dot_product_attention": 2},
    "bert": {"linear": 13, "layer_norm": 5, "gelu": 2, "scaled_dot_product_attention": 2, "tanh": 1},
    "llama": {"linear": 15, "rms_norm": 5, "silu": 2, "scaled_dot_product_attention": 2, "embedding": 1},
    "deepseek": {"linear": 18, "rms_norm": 9, "silu": 3, "scaled_dot_product_attention": 2, "topk": 3, "matmul": 2},
}
"""Some of what each graph consists of, by hand from the model."""

LOWEST_HIDES = "torch.onnx hides with the least float where the model has a boolean mask, so the choice stays"
LOOKED_UP = "torch.onnx looks constant positions up in their tables, and repeats constant tokens"
FLATTENED = "TorchScript looks values of the mask up in all of its axes made one"
NO_EPSILON = "torch.onnx takes + 1e-20 for + 0"

Difference = dict[str, int]
"""By how many calls of an operator the file has more."""

EXPORTS: dict[str, dict[str, Any]] = {
    "default": {},
    "newest opset": {"opset_version": 23},
    "as traced": {"optimize": False},
    "TorchScript": {"dynamo": False, "opset_version": 17},
}
DIFFERENCES: dict[tuple[str, str], tuple[Difference, str]] = {
    ("vit", "default"): ({"expand": -1}, LOOKED_UP),
    ("vit", "newest opset"): ({"expand": -1}, LOOKED_UP),
    ("bert", "default"): ({"where.self": 1}, LOWEST_HIDES),
    ("bert", "as traced"): ({"where.self": 2}, LOWEST_HIDES),
    ("bert", "TorchScript"): ({"reshape": 2}, FLATTENED),
    ("deepseek", "default"): ({"add.Tensor": -1}, NO_EPSILON),
    ("deepseek", "newest opset"): ({"add.Tensor": -1}, NO_EPSILON),
}


class Plain(nn.Module):
    """A model of tensors by position, and of a tuple: all that TorchScript takes."""

    def __init__(self, model: nn.Module, names: tuple[str, ...]) -> None:
        super().__init__()
        self.model, self.names = model, names

    def forward(self, *inputs: Tensor) -> tuple[Tensor, ...]:
        outputs = self.model(**dict(zip(self.names, inputs, strict=True)))
        return tuple(value for value in outputs.values() if isinstance(value, Tensor))


def export(name: str, path: Path, **options: Any) -> Program:
    """Through torch.onnx, with the settings that `trace` changes by itself."""
    model, inputs = copy.deepcopy(built(name))
    if name == "deepseek":
        model.set_experts_implementation("batched_mm")
    model.config.use_cache = False
    logging.disable(logging.WARNING)
    try:
        if options.get("dynamo", True):
            torch.onnx.export(model, (), path, kwargs=inputs, dynamo=True, verbose=False, **options)
        else:
            plain = Plain(model, tuple(inputs)).eval()
            torch.onnx.export(plain, tuple(inputs.values()), path, input_names=list(inputs), **options)
    finally:
        logging.disable(logging.NOTSET)
    return load_onnx(path)


def canonical(program: Program) -> Program:
    return FoldBatchNorm()(Canonicalize()(program))


def operators(program: Program) -> Counter[str]:
    names = [str(node.target) for node in program.graph.nodes if node.op == "call_function"]
    return Counter(name.removeprefix("aten.").removesuffix(".default") for name in names)


def excess(ours: Program, theirs: Program) -> Difference:
    left, right = operators(ours), operators(theirs)
    return {name: right[name] - left[name] for name in left | right if left[name] != right[name]}


def assert_same_outputs(name: str, *programs: Program) -> None:
    model, inputs = built(name)
    with torch.no_grad():
        expected = [value for value in model(**inputs).values() if isinstance(value, Tensor)]
    for program in programs:
        found = program.run(list(inputs.values()))
        for ours, theirs in zip(found, expected, strict=True):
            assert (ours - theirs).abs().max() <= 1e-5 * theirs.abs().max()


def meet(name: str, export_name: str, folder: Path) -> None:
    first = canonical(traced(name))
    second = canonical(export(name, folder / "model.onnx", **EXPORTS[export_name]))
    assert OPERATORS[name].items() <= operators(first).items()
    assert excess(first, second) == DIFFERENCES.get((name, export_name), ({}, ""))[0]
    assert_same_outputs(name, first, second)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", MODELS)
def test_both_doors_give_the_same_graph(name: str, tmp_path: Path) -> None:
    meet(name, "default", tmp_path)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", ["resnet", "vit", "bert", pytest.param("mobilenet", marks=pytest.mark.slow)])
def test_so_does_the_exporter_through_torchscript(name: str, tmp_path: Path) -> None:
    """Of the six it takes these: it has no rule for an operator of the masks of Llama and DeepSeek."""
    meet(name, "TorchScript", tmp_path)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("how", ["newest opset", "as traced"])
@pytest.mark.parametrize("name", MODELS)
def test_so_do_other_ways_to_export(name: str, how: str, tmp_path: Path) -> None:
    meet(name, how, tmp_path)


COMPUTE = [
    "adaptive_avg_pool2d",
    "conv2d",
    "embedding",
    "gelu",
    "hardtanh",
    "layer_norm",
    "linear",
    "matmul",
    "max_pool2d",
    "mul.Tensor",
    "relu",
    "rms_norm",
    "scaled_dot_product_attention",
    "sigmoid",
    "silu",
    "softmax.int",
    "tanh",
    "topk",
]


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("opset", [20, 23])
@pytest.mark.parametrize("name", MODELS)
def test_with_dynamic_sizes_both_doors_compute_the_same(name: str, opset: int, tmp_path: Path) -> None:
    """Masks and positions are then computed as the model runs, from ranges that the exporter writes otherwise."""
    model, inputs = built(name)
    axes = {0: "batch"} if "pixel_values" in inputs else {0: "batch", 1: "length"}
    dims = {axis: torch.export.Dim(label) for axis, label in axes.items()}
    shapes = dict.fromkeys(inputs, dims)
    first = canonical(trace(model, (), inputs, dict.fromkeys(inputs, axes)))
    second = canonical(export(name, tmp_path / "model.onnx", dynamic_shapes=shapes, opset_version=opset))
    left, right = operators(first), operators(second)
    assert {key: left[key] for key in COMPUTE} == {key: right[key] for key in COMPUTE}
    assert_same_outputs(name, first, second)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", ["vit", pytest.param("llama", marks=pytest.mark.slow)])
def test_a_file_that_onnx_runtime_optimized_gives_the_same_operators(name: str, tmp_path: Path) -> None:
    program = canonical(export(name, tmp_path / "model.onnx"))
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_EXTENDED
    options.optimized_model_filepath = str(tmp_path / "optimized.onnx")
    options.log_severity_level = 3
    onnxruntime.InferenceSession(tmp_path / "model.onnx", options, providers=["CPUExecutionProvider"])
    optimized = canonical(load_onnx(tmp_path / "optimized.onnx"))
    left, right = operators(program), operators(optimized)
    assert {key: left[key] for key in COMPUTE} == {key: right[key] for key in COMPUTE}
    assert_same_outputs(name, optimized)
