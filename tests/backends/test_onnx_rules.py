"""Every rule against torch: a small module is traced, emitted, and run by ONNX Runtime on the same inputs."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cache
from typing import Any

import onnx
import pytest
import torch
from torch import Tensor, nn

from tersor.backends.onnx.emit import emit_model
from tersor.backends.onnx.registry import RULES
from tersor.frontends.torch_export import trace
from tersor.ir.program import Program
from tersor.ir.shapes import SYMBOLIC_OPERATORS
from tersor.ir.signature import Signature, TensorSpec
from tersor.ir.structure import flatten

from .onnx_rule_cases import GROUPS, Case, integers, mask, matrix, positive, randn, small, whole, x

aten = torch.ops.aten
RunOnnx = Callable[[onnx.ModelProto, Sequence[Tensor]], list[Tensor]]


class Calls(nn.Module):
    """Several functions side by side, so that a group of cases is traced once."""

    def __init__(self, functions: dict[str, Callable[..., Any]]) -> None:
        super().__init__()
        self.functions = functions

    def forward(self, inputs: dict[str, list[Tensor]]) -> dict[str, Any]:
        return {name: function(*inputs[name]) for name, function in self.functions.items()}


def assert_same(expected: Sequence[Tensor], found: Sequence[Tensor]) -> None:
    """Dtypes, shapes, and values up to float rounding."""
    assert len(expected) == len(found)
    for ours, theirs in zip(expected, found, strict=True):
        torch.testing.assert_close(theirs, ours.detach(), rtol=2e-5, atol=2e-5, equal_nan=True)


@cache
def program_of(group: str) -> Program:
    cases = GROUPS[group]
    return trace(Calls({name: function for name, (function, _) in cases.items()}), (inputs_of(cases),))


@cache
def outputs_of(group: str, run_onnx: RunOnnx) -> tuple[dict[str, Any], dict[str, Any]]:
    """What torch and ONNX Runtime give for each case of a group; torch runs the functions themselves."""
    cases, program = GROUPS[group], program_of(group)
    flat = program.signature.flatten((inputs_of(cases),), {})
    found = program.unflatten(run_onnx(emit_model(program), flat))
    return {name: function(*inputs) for name, (function, inputs) in cases.items()}, found


def inputs_of(cases: dict[str, Case]) -> dict[str, list[Tensor]]:
    return {name: list(inputs) for name, (_, inputs) in cases.items()}


@pytest.mark.parametrize(("group", "name"), [(group, name) for group, cases in GROUPS.items() for name in cases])
def test_a_rule_computes_what_torch_does(group: str, name: str, run_onnx: RunOnnx) -> None:
    expected, found = (flatten(outputs[name])[0] for outputs in outputs_of(group, run_onnx))
    assert_same(expected, found)


# Overloads that tracing turns into others, called as they are: the operator, and its arguments.
c = torch.tensor
DIRECT: list[tuple[Any, tuple[Any, ...]]] = [
    (aten.add.Scalar, (x, 2, 3)),
    (aten.sub.Scalar, (x, 2, 3)),
    (aten.rsub.Tensor, (x, positive)),
    (aten.mul.Scalar, (x, 2.5)),
    (aten.div.Scalar, (x, 2.5)),
    (aten.div.Scalar_mode, (x, 0.3)),
    (aten.floor_divide.Scalar, (whole, 2)),
    (aten.remainder.Tensor, (x, positive)),
    (aten.remainder.Scalar_Tensor, (2.5, positive)),
    (aten.fmod.Tensor, (x, positive)),
    (aten.eq.Scalar, (whole, 2)),
    (aten.ne.Tensor, (whole, whole.flip(0))),
    (aten.gt.Scalar, (x, 0.5)),
    (aten.ge.Scalar, (whole, 2.5)),
    (aten.lt.Scalar, (x, 0)),
    (aten.le.Tensor, (x, positive)),
    (aten.clamp_min.default, (x, 0.1)),
    (aten.clamp_max.default, (x, 0.1)),
    (aten.where.ScalarSelf, (mask, 1.5, x)),
    (aten.where.Scalar, (mask, 1.5, 2.5)),
    (aten.masked_fill.Tensor, (x, mask, c(2.0))),
    (aten.bitwise_and.Tensor, (whole, whole.flip(0))),
    (aten.bitwise_and.Scalar, (whole, 3)),
    (aten.__and__.Scalar, (whole, 3)),
    (aten.bitwise_or.Tensor, (mask, mask.flip(0))),
    (aten.bitwise_or.Scalar, (whole, 3)),
    (aten.__or__.Tensor, (whole, whole.flip(0))),
    (aten.bitwise_xor.Tensor, (mask, mask.flip(0))),
    (aten.bitwise_xor.Scalar, (whole, 3)),
    (aten.__xor__.Scalar, (whole, 3)),
    (aten.logical_xor.default, (whole, mask[..., 0])),
    (aten.type_as.default, (whole, x)),
    (aten.contiguous.default, (x,)),
    (aten.detach.default, (x,)),
    (aten.lift_fresh_copy.default, (x,)),
    (aten.feature_dropout.default, (x, 0.5, False)),
    (aten.to.dtype, (x, torch.float64)),
    (aten._prelu_kernel.default, (x, randn(4, 1, 1).abs())),
    (aten.conv1d.padding, (x[..., 0], randn(8, 4, 3), None, [1], "same")),
    (aten.conv3d.padding, (randn(1, 2, 4, 5, 6), randn(3, 2, 2, 2, 2))),
    (aten.conv_transpose3d.input, (randn(1, 2, 4, 5, 6), randn(2, 3, 2, 2, 2), None, [2, 1, 1])),
    (aten.mm.default, (matrix, randn(8, 4))),
    (aten.dot.default, (matrix[0], matrix[1])),
    (aten._softmax.default, (x, 1, False)),
    (aten._safe_softmax.default, (x, 1)),
    (aten._log_softmax.default, (x, 1, False)),
    (aten.prod.default, (small,)),
    (aten.min.default, (x,)),
    (aten.any.default, (mask,)),
    (aten.any.dims, (mask, [1, 2])),
    (aten.all.dim, (mask, 1)),
    (aten.all.dims, (whole, [0, 2])),
    (aten.std.dim, (x, [1, 2], False)),
    (aten.var.default, (x, False)),
    (aten.std.default, (x,)),
    (aten.flatten.using_ints, (x, 1, -2)),
    (aten.flatten.using_ints, (c(1.5),)),
    (aten.unflatten.int, (x, 1, [2, -1])),
    (aten.squeeze.dims, (x[:, :1, :1], [1, 2, 3])),
    (aten.expand_as.default, (x[:, :1], x)),
    (aten.numpy_T.default, (x,)),
    (aten.movedim.int, (x, 1, -1)),
    (aten.max_pool3d.default, (randn(1, 2, 4, 5, 6), [2, 2, 2])),
    (aten.adaptive_avg_pool3d.default, (randn(1, 2, 4, 6, 6), [2, 3, 1])),
    (aten.upsample_nearest1d.vec, (x[..., 0], [9], None)),
    (aten.upsample_nearest2d.default, (x, [12, 9], 2.0, 1.5)),
    (aten.upsample_bilinear2d.default, (x, [9, 9], False, 1.5, 1.5)),
    (aten.upsample_nearest3d.vec, (randn(1, 2, 3, 4, 5), None, [2.0, 1.5, 2.0])),
    (aten._upsample_nearest_exact1d.vec, (x[..., 0], [9], None)),
    (aten._upsample_nearest_exact2d.vec, (x, [4, 10], None)),
    (aten._upsample_nearest_exact2d.default, (x, [12, 9], 2.0, 1.5)),
    (aten._upsample_nearest_exact3d.vec, (randn(1, 2, 3, 4, 5), [6, 3, 7], None)),
    (aten.upsample_linear1d.vec, (x[..., 0], [9], False, None)),
    (aten.upsample_bilinear2d.vec, (x, [1, 1], False, None)),
    (aten.upsample_trilinear3d.vec, (randn(1, 2, 3, 4, 5), [6, 4, 8], True, None)),
    (aten.upsample_bicubic2d.default, (x, [9, 9], False, 1.5, 1.5)),
    (aten._upsample_bilinear2d_aa.vec, (x, [4, 3], False, None)),
    (aten._upsample_bilinear2d_aa.default, (x, [3, 3], False, 0.5, 0.5)),
    (aten._upsample_bicubic2d_aa.vec, (x, [4, 3], False, None)),
    (aten._upsample_bicubic2d_aa.default, (x, [3, 3], False, 0.5, 0.5)),
    (aten.grid_sampler.default, (x, randn(2, 3, 5, 2), 0, 0, False)),
    (aten.grid_sampler.default, (x, randn(2, 3, 5, 2), 1, 1, True)),
    (aten.grid_sampler.default, (x, randn(2, 3, 5, 2), 2, 2, False)),
    (aten.grid_sampler.default, (randn(1, 2, 3, 4, 5), randn(1, 2, 2, 2, 3), 0, 0, True)),
    (aten.col2im.default, (randn(2, 12, 4), [5, 5], [2, 2], [1, 1], [0, 0], [2, 2])),
    (aten.avg_pool3d.default, (randn(1, 2, 4, 5, 6), [2, 2, 2])),
    (aten.scatter_reduce.two, (x, 1, integers(4, 2, 3, 6, 6), randn(2, 3, 6, 6), "amax")),
    (aten.scatter_reduce.two, (x, 1, integers(4, 2, 3, 6, 6), randn(2, 3, 6, 6), "prod")),
    (aten.threshold.default, (x, 0.1, -2.0)),
    (aten.constant_pad_nd.default, (x, [1, 2], 0.5)),
    (aten.reflection_pad1d.default, (x[0], [1, 2])),
    (aten.reflection_pad2d.default, (x, [1, 2, 3, 0])),
    (aten.replication_pad1d.default, (x[0], [1, 2])),
    (aten.replication_pad2d.default, (x, [1, 2, 3, 0])),
    (aten.new_zeros.default, (x, [2, 3])),
    (aten.zeros_like.default, (x,)),
    (aten.ones.default, ([2, 3],)),
    (aten.scalar_tensor.default, (2.5,)),
    (aten.arange.start, (2, 7)),
]


@cache
def outputs_of_overloads(run_onnx: RunOnnx) -> tuple[tuple[Tensor, ...], list[Tensor]]:
    graph = torch.fx.Graph()
    tensors = [argument for _, args in DIRECT for argument in args if isinstance(argument, Tensor)]
    nodes = iter([graph.placeholder(f"x{index}") for index in range(len(tensors))])
    calls = [(op, tuple(next(nodes) if isinstance(a, Tensor) else a for a in args)) for op, args in DIRECT]
    kept = tuple(graph.call_function(op, args, _keywords(op)) for op, args in calls)
    graph.output(kept)
    specs = tuple(TensorSpec(f"x{i}", tensor.dtype, tuple(tensor.shape)) for i, tensor in enumerate(tensors))
    results = tuple(op(*args, **_keywords(op)) for op, args in DIRECT)
    structures = flatten(tuple(tensors))[1], flatten({})[1], flatten(results)[1]
    program = Program.build(graph, {}, Signature(specs, *structures))
    return results, run_onnx(emit_model(program), tensors)


def _keywords(op: Any) -> dict[str, Any]:
    return {"rounding_mode": "floor"} if op is aten.div.Scalar_mode else {}


@pytest.mark.parametrize("index", range(len(DIRECT)), ids=[str(op) for op, _ in DIRECT])
def test_an_overload_computes_what_torch_does(index: int, run_onnx: RunOnnx) -> None:
    expected, found = outputs_of_overloads(run_onnx)
    assert_same([expected[index]], [found[index]])


UNDEFINED = {aten.empty.memory_format, aten.new_empty.default, aten.empty_like.default}
"""Operators that give whatever the memory holds."""

SIZES = SYMBOLIC_OPERATORS | {aten.sym_size.int, aten.sym_numel.default}
"""Arithmetic on sizes, which other tests cover."""


RECURRENT = {aten.lstm.input, aten.gru.input, aten.rnn_tanh.input, aten.rnn_relu.input}
"""Networks with weights of their own, which tests/frontends/onnx/test_recurrent.py covers."""


def test_every_rule_is_exercised() -> None:
    traced = {node.target for group in GROUPS for node in program_of(group).graph.nodes}
    traced |= {op for op, _ in DIRECT}
    known = {RULES[op].function for op in traced & RULES.keys()}
    missing = {op for op, found in RULES.items() if found.function not in known}
    assert {str(op) for op in missing - UNDEFINED - SIZES - RECURRENT if op.namespace != "tersor"} == set()
