"""A formula written out becomes the operator that computes it; one that differs in anything stays."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import Phase, given, settings
from hypothesis import strategies as st
from torch import Tensor, fx, nn

from tersor.frontends.torch_export import trace
from tersor.ir.program import Program
from tersor.ir.signature import Signature, TensorSpec
from tersor.ir.structure import Structure
from tersor.passes.base import Pass
from tersor.passes.canonical.canonicalize import Canonicalize
from tersor.passes.canonical.recover_operators import RecoverOperators

aten = torch.ops.aten
Function = Callable[..., Any]
GENERATOR = torch.Generator().manual_seed(0)


def randn(*sizes: int, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(*sizes, generator=GENERATOR, dtype=dtype)


X = randn(2, 5, 8) * 3
WEIGHT, BIAS = nn.Parameter(randn(8) + 1), nn.Parameter(randn(8))
Q, K, V = randn(2, 4, 5, 8), randn(2, 4, 6, 8), randn(2, 4, 6, 8)


class Model(nn.Module):
    """A function of tensors and of parameters as a model."""

    def __init__(self, function: Function, **parameters: nn.Parameter) -> None:
        super().__init__()
        self.function = function
        for name, parameter in parameters.items():
            self.register_parameter(name, parameter)

    def forward(self, *inputs: Tensor) -> Any:
        return self.function(self, *inputs)


def program_of(function: Function, *inputs: Tensor, **parameters: nn.Parameter) -> Program:
    return trace(Model(function, **parameters), inputs)


def calls(program: Program) -> list[str]:
    """The operators called, in graph order."""
    names = [str(node.target) for node in program.graph.nodes if node.op == "call_function"]
    return [name.removeprefix("aten.").removesuffix(".default") for name in names]


def recovered(program: Program, step: Pass | None = None) -> list[str]:
    """Run the pass, check that the outputs stay, and give the operators."""
    result = (step or RecoverOperators())(program)
    assert program.example is not None
    tolerance = 1e-6 if program.outputs[0].meta["val"].dtype is torch.float32 else 1e-12
    for ours, theirs in zip(result.run(program.example), program.run(program.example), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=10 * tolerance, atol=10 * tolerance)
    return calls(result)


ROOT = math.sqrt(2)
ANGLE = math.sqrt(2 / math.pi)


ACTIVATIONS: dict[str, list[Function]] = {
    "silu": [
        lambda m, x: x * torch.sigmoid(x),
        lambda m, x: torch.sigmoid(x) * x,
        lambda m, x: (torch.sigmoid(x) * 2 * x) / 2,
    ],
    "mish": [lambda m, x: x * torch.tanh(F.softplus(x))],
    "gelu": [
        lambda m, x: x * 0.5 * (1 + torch.erf(x / ROOT)),
        lambda m, x: 0.5 * (x * (torch.erf(x * 0.7071067690849304) + 1.0)),
        lambda m, x: x * ((torch.erf(x / 1.4142135381698608) + 1) / 2),
        lambda m, x: x * 0.5 * (1 + torch.tanh(ANGLE * (x + 0.044715 * torch.pow(x, 3)))),
        lambda m, x: 0.5 * x * (1 + torch.tanh(x * 0.7978845608 * (1 + 0.044715 * x * x))),
        lambda m, x: 0.5 * x * (1 + torch.tanh(0.7978845834732056 * (0.044715 * (x * x * x) + x))),
        lambda m, x: 0.5 * x * (1 + torch.tanh(ANGLE * (x + 0.044715 * x.square() * x))),
    ],
    "hardsigmoid": [
        lambda m, x: torch.clamp(x + 3, 0, 6) / 6,
        lambda m, x: F.relu6(x + 3.0) * (1 / 6),
        lambda m, x: torch.clamp(x / 6 + 0.5, 0, 1),
    ],
    "hardswish": [
        lambda m, x: x * torch.clamp(x + 3, 0, 6) / 6,
        lambda m, x: x * (F.relu6(x + 3) / 6),
        lambda m, x: F.hardtanh(3 + x, 0.0, 6.0) * x * 0.16666667163372040,
        lambda m, x: F.hardsigmoid(x) * x,
    ],
    "rsqrt": [lambda m, x: torch.reciprocal(torch.sqrt(x.exp()))],
}
SPELLINGS = [(name, function) for name, functions in ACTIVATIONS.items() for function in functions]


@pytest.mark.parametrize(("operator", "function"), SPELLINGS)
def test_an_activation_written_out_is_one_operator(operator: str, function: Function) -> None:
    assert [call for call in recovered(program_of(function, X)) if call != "exp"] == [operator]


def test_the_two_forms_of_gelu_are_told_apart() -> None:
    program = program_of(lambda m, x: x * 0.5 * (1 + torch.erf(x / ROOT)), X)
    assert "aten.gelu(%inputs_0)" in str(RecoverOperators()(program))
    program = program_of(lambda m, x: x * 0.5 * (1 + torch.tanh(ANGLE * (x + 0.044715 * x**3))), X)
    assert "aten.gelu(%inputs_0, approximate=tanh)" in str(RecoverOperators()(program))


NEAR_MISSES: list[Function] = [
    lambda m, x: x * torch.sigmoid(1.702 * x),
    lambda m, x: x * torch.sigmoid(x + 0.0 * x),
    lambda m, x: x * torch.tanh(F.softplus(x, beta=2)),
    lambda m, x: x / torch.sigmoid(x),
    lambda m, x: x[:1] * torch.sigmoid(x),
    lambda m, x: (x * torch.sigmoid(x.double())).float(),
    lambda m, x: x * 0.5 * (1 + torch.erf(x / 1.414)),
    lambda m, x: x * 0.51 * (1 + torch.erf(x / ROOT)),
    lambda m, x: x * 0.5 * (2 + torch.erf(x / ROOT)),
    lambda m, x: x * 0.5 * (1 - torch.erf(x / ROOT)),
    lambda m, x: x * 0.5 * (1 + torch.tanh(ANGLE * (x + 0.045 * x**3))),
    lambda m, x: x * 0.5 * (1 + torch.tanh(ANGLE * (x + 0.044715 * x**2))),
    lambda m, x: torch.clamp(x + 3, 0, 5) / 6,
    lambda m, x: torch.clamp(x + 3, 0, 6) / 5,
    lambda m, x: x * torch.clamp(x + 2, 0, 6) / 6,
]


@pytest.mark.parametrize("function", NEAR_MISSES)
def test_other_constants_dtypes_and_signs_are_left_as_they_are(function: Function) -> None:
    program = program_of(function, X)
    assert recovered(program) == calls(program)


def test_a_formula_whose_inner_value_has_another_user_is_left_as_it_is() -> None:
    def gated(m: Any, x: Tensor) -> Any:
        gate = torch.sigmoid(x)
        return x * gate, gate

    def normal(m: Any, x: Tensor) -> Any:
        mean = (x * x).mean(-1, keepdim=True)
        return x * torch.rsqrt(mean + 1e-6), mean

    for function in (gated, normal):
        program = program_of(function, X)
        assert recovered(program) == calls(program)


def test_two_formulas_that_share_what_they_are_of_are_both_found() -> None:
    def function(m: Any, x: Tensor) -> Tensor:
        x = x * 2 * x
        return x * torch.sigmoid(x) + x * 0.5 * (1 + torch.erf(x / ROOT))

    assert recovered(program_of(function, X)) == ["mul.Tensor", "mul.Tensor", "silu", "gelu", "add.Tensor"]


RMS: list[Function] = [
    lambda m, x: m.weight * (x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + 1e-6)),
    lambda m, x: x * torch.rsqrt((x * x).mean(2, keepdim=True) + 1e-6) * m.weight,
    lambda m, x: x / torch.sqrt(x.pow(2).mean(-1, keepdim=True) + 1e-6) * m.weight,
    lambda m, x: x * (1 / torch.sqrt(1e-6 + x.pow(2).mean(-1, keepdim=True))) * m.weight,
    lambda m, x: x * (x.pow(2).mean(-1, keepdim=True) + 1e-6).pow(-0.5) * m.weight,
]


@pytest.mark.parametrize("function", RMS)
def test_rms_norm(function: Function) -> None:
    program = program_of(function, X, weight=WEIGHT)
    assert recovered(program) == ["rms_norm"]
    assert "aten.rms_norm(%inputs_0, [8], @weight, 1e-06)" in str(RecoverOperators()(program))


def test_rms_norm_of_half_precision_is_computed_in_float32_as_it_was() -> None:
    def function(m: Any, x: Tensor) -> Tensor:
        wide = x.float()
        return (wide * torch.rsqrt(wide.pow(2).mean(-1, keepdim=True) + 1e-6)).to(x.dtype)

    program = program_of(function, X.half())
    assert calls(RecoverOperators()(program)) == ["_to_copy", "rms_norm", "_to_copy"]
    assert torch.equal(RecoverOperators()(program)(X.half()), program(X.half()))


def centered(x: Tensor) -> Tensor:
    return x - x.mean(-1, keepdim=True)


LAYER: list[Function] = [
    lambda m, x: centered(x) / torch.sqrt(centered(x).pow(2).mean(-1, keepdim=True) + 1e-5) * m.weight + m.bias,
    lambda m, x: m.bias + m.weight * (centered(x) * torch.rsqrt(centered(x).square().mean(-1, keepdim=True) + 1e-5)),
    lambda m, x: (
        (x - x.mean(-1, keepdim=True)) / torch.sqrt(x.var(-1, keepdim=True, unbiased=False) + 1e-5) * m.weight + m.bias
    ),
]


@pytest.mark.parametrize("function", LAYER)
def test_layer_norm(function: Function) -> None:
    program = program_of(function, X, weight=WEIGHT, bias=BIAS)
    assert recovered(program) == ["layer_norm"]
    assert "aten.layer_norm(%inputs_0, [8], @weight, @bias, 1e-05)" in str(RecoverOperators()(program))


def test_layer_norm_over_the_last_two_axes() -> None:
    def function(m: Any, x: Tensor) -> Tensor:
        x = x - x.mean((1, 2), keepdim=True)
        return x / torch.sqrt(x.pow(2).mean((1, 2), keepdim=True) + 1e-5)

    assert "aten.layer_norm(%inputs_0, [5, 8], None, None, 1e-05)" in str(RecoverOperators()(program_of(function, X)))


NOT_NORMS: list[Function] = [
    lambda m, x: x * torch.rsqrt(x.pow(2).mean(1, keepdim=True) + 1e-6),
    lambda m, x: x * torch.rsqrt(x.pow(2).mean(-1).unsqueeze(-1) + 1e-6),
    lambda m, x: x * torch.rsqrt(x.pow(2).sum(-1, keepdim=True) + 1e-6),
    lambda m, x: x * torch.rsqrt(x.pow(4).mean(-1, keepdim=True) + 1e-6),
    lambda m, x: x * torch.sqrt(x.pow(2).mean(-1, keepdim=True) + 1e-6),
    lambda m, x: x.relu() * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + 1e-6),
    lambda m, x: centered(x) / torch.sqrt((x - x.mean(1, keepdim=True)).pow(2).mean(-1, keepdim=True) + 1e-5),
    lambda m, x: centered(x) / torch.sqrt(x.var(-1, keepdim=True) + 1e-5),
    lambda m, x: centered(x) / (torch.sqrt(centered(x).pow(2).mean(-1, keepdim=True)) + 1e-5),
]


@pytest.mark.parametrize("function", NOT_NORMS)
def test_other_axes_and_statistics_are_no_norm(function: Function) -> None:
    assert not {"rms_norm", "layer_norm"} & set(recovered(program_of(function, X)))


def test_what_a_norm_is_multiplied_by_joins_it_where_it_has_its_sizes() -> None:
    scale = nn.Parameter(randn(1))
    norm = nn.RMSNorm(8, elementwise_affine=False)
    assert recovered(program_of(lambda m, x: norm(x) * m.scale, X, scale=scale)) == ["rms_norm", "mul.Tensor"]
    assert recovered(program_of(lambda m, x: norm(x) * (1 + m.weight), X, weight=WEIGHT))[-1] == "rms_norm"
    twice = program_of(lambda m, x: norm(x) * m.weight * m.bias, X, weight=WEIGHT, bias=BIAS)
    assert recovered(twice) == ["rms_norm", "mul.Tensor"]


def product(query: Tensor, key: Tensor) -> Tensor:
    return torch.matmul(query, key.transpose(-1, -2))


def safe(x: Tensor) -> Tensor:
    """Softmax as torch.onnx writes it, with zeros for rows where all is hidden."""
    weights = torch.softmax(x, -1)
    return torch.where(torch.isnan(weights), torch.zeros(()), weights)


def shown(x: Tensor, dim: int = -1) -> Tensor:
    """Softmax with zeros for rows whose greatest score hides, so that a NaN of another kind shows."""
    return torch.where(x.amax(dim, keepdim=True) == -math.inf, torch.zeros(()), torch.softmax(x, -1))


SCALE = 1 / math.sqrt(8)
MASK = randn(5, 6)
SEEN = torch.ones(5, 6).tril() > 0
ATTENTION: dict[str, tuple[Function, tuple[Tensor, ...], str]] = {
    "plain": (lambda m, q, k, v: torch.softmax(product(q, k), -1) @ v, (), "scale=1.0"),
    "scaled": (lambda m, q, k, v: torch.softmax(product(q, k) * 0.2, -1) @ v, (), "scale=0.2"),
    "divided": (lambda m, q, k, v: torch.softmax(product(q, k) / 4.0, -1) @ v, (), "scale=0.25"),
    "query scaled": (lambda m, q, k, v: torch.softmax(product(q * 0.2, k), -1) @ v, (), "scale=0.2"),
    "both scaled": (
        lambda m, q, k, v: safe(product(q * math.sqrt(SCALE), k * 0.5946035385131836)) @ v,
        (),
        f"scale={SCALE}",
    ),
    "added": (lambda m, q, k, v, a: torch.softmax(product(q, k) * 0.2 + a, -1) @ v, (MASK,), "%inputs_3, scale=0.2"),
    "hidden": (
        lambda m, q, k, v, s: safe(torch.where(s, product(q, k) * 0.2, -math.inf)) @ v,
        (SEEN,),
        "%inputs_3, scale=0.2",
    ),
    "shown": (lambda m, q, k, v, a: shown(product(q, k) * 0.2 + a) @ v, (MASK,), "%inputs_3, scale=0.2"),
    "filled": (
        lambda m, q, k, v, s: torch.softmax((product(q, k) * 0.2).masked_fill(~s, -math.inf), -1) @ v,
        (SEEN,),
        "scale=0.2",
    ),
    "least": (
        lambda m, q, k, v, s: safe(product(q, k) + torch.where(s, torch.zeros(()), torch.tensor(-math.inf))) @ v,
        (SEEN,),
        "%inputs_3, scale=1.0",
    ),
}


@pytest.mark.parametrize("name", ATTENTION)
def test_attention(name: str) -> None:
    function, masks, text = ATTENTION[name]
    program = program_of(function, Q, K, V, *masks)
    found = recovered(program, Canonicalize())
    assert found[-1] == "scaled_dot_product_attention"
    assert not {"softmax.int", "matmul", "permute", "mul.Tensor", "add.Tensor"} & set(found)
    assert text in str(Canonicalize()(program))


def test_zeros_that_other_questions_put_in_keep_attention_as_written() -> None:
    square = randn(1, 2, 6, 8)
    columns = program_of(lambda m, q, k, v, a: shown(product(q, k) + a, -2) @ v, square, square, square, MASK[:1])
    hidden = torch.zeros(6, 6, dtype=torch.bool)
    given = program_of(
        lambda m, q, k, v, s: torch.where(s, torch.zeros(()), torch.softmax(product(q, k), -1)) @ v,
        square, square, square, hidden,
    )  # fmt: skip
    for program in (columns, given):
        assert "softmax.int" in recovered(program, Canonicalize())
    no_softmax = program_of(
        lambda m, x, v: torch.where(x.amax(-1, keepdim=True) == -math.inf, torch.zeros(()), x) @ v, square, square.mT
    )
    assert "matmul" in recovered(no_softmax, Canonicalize())


def test_attention_of_three_axes_and_of_batched_products() -> None:
    program = program_of(lambda m, q, k, v: torch.softmax(torch.bmm(q, k.mT), 2).bmm(v), Q[0], K[0], V[0])
    assert recovered(program, Canonicalize()) == ["scaled_dot_product_attention"]


def test_attention_whose_heads_share_one_key_and_value() -> None:
    program = program_of(lambda m, q, k, v: torch.softmax(product(q, k), -1) @ v, Q, K[:, :1], V[:, :1])
    assert recovered(program, Canonicalize())[-1] == "scaled_dot_product_attention"


def grouped(x: Tensor, scale: Tensor | None = None, *, statistics: bool = True) -> Tensor:
    """Group norm as exporters write it."""
    rows = x.reshape(x.shape[0], 2, -1)
    means, variances = (None, None) if statistics else (torch.zeros(2), torch.ones(2))
    return F.instance_norm(rows, means, variances, scale, use_input_stats=statistics, eps=1e-3).reshape(x.shape)


CHANNELS = {name: nn.Parameter(randn(6, 1, 1)) for name in ("weight", "bias")}


def test_group_norm() -> None:
    image = randn(2, 6, 3, 3)
    whole = program_of(lambda m, x: grouped(x, torch.ones(2)) * m.weight + m.bias, image, **CHANNELS)
    assert recovered(whole.copy()) == ["group_norm"]
    program = RecoverOperators()(whole)
    norm = program.graph.find_nodes(op="call_function", target=aten.group_norm.default)[0]
    assert (norm.args[1], norm.args[4]) == (2, 1e-3)
    assert {name: tuple(tensor.shape) for name, tensor in program.parameters().items()} == {
        "weight_by_channel": (6,),
        "bias_by_channel": (6,),
    }


OTHER_GROUPS: list[Function] = [
    lambda m, x: grouped(x, torch.tensor([1.0, 2.0])) * m.weight,
    lambda m, x: grouped(x, statistics=False) * m.weight,
    lambda m, x: F.instance_norm(x.reshape(4, 3, -1)).reshape(x.shape) * m.weight,
]


@pytest.mark.parametrize("function", OTHER_GROUPS)
def test_what_differs_from_group_norm_is_left_as_it_is(function: Function) -> None:
    assert "group_norm" not in recovered(program_of(function, randn(2, 6, 3, 3), weight=CHANNELS["weight"]))


def test_a_group_norm_takes_one_number_a_channel_and_no_others() -> None:
    image = randn(2, 6, 6, 6)
    rows = nn.Parameter(randn(6))
    assert recovered(program_of(lambda m, x: grouped(x) * m.w, image, w=rows)) == ["group_norm", "mul.Tensor"]
    first = program_of(lambda m, x: (grouped(x) + m.bias) * m.weight, image, **CHANNELS)
    assert recovered(first) == ["group_norm", "mul.Tensor"]


def test_a_row_where_all_is_hidden_gives_zeros() -> None:
    hidden = torch.zeros(5, 6, dtype=torch.bool)
    program = program_of(lambda m, q, k, v, s: safe(torch.where(s, product(q, k), -math.inf)) @ v, Q, K, V, hidden)
    result = Canonicalize()(program)
    assert "aten.scaled_dot_product_attention" in str(result)
    assert not result(Q, K, V, hidden).any()
    assert torch.equal(result(Q, K, V, hidden), program(Q, K, V, hidden))


def twice(m: Any, q: Tensor, k: Tensor, v: Tensor) -> Any:
    weights = torch.softmax(product(q, k), -1)
    return weights @ v, weights


NOT_ATTENTION: list[Function] = [
    twice,
    lambda m, q, k, v: torch.softmax(product(q, k), -2) @ v,
    lambda m, q, k, v: torch.softmax(product(q, k), -1, dtype=torch.float64).float() @ v,
    lambda m, q, k, v: torch.softmax(product(q, k).relu(), -1) @ v,
    lambda m, q, k, v: torch.softmax(product(q, k[:, :1]), -1) @ v,
    lambda m, q, k, v: torch.softmax(torch.where(q[..., :6] > 0, product(q, k), -1e9), -1) @ v,
    lambda m, q, k, v: torch.softmax(product(q[0, 0], k[0, 0]), -1) @ v[0, 0],
]


@pytest.mark.parametrize("function", NOT_ATTENTION)
def test_what_differs_from_attention_is_left_as_it_is(function: Function) -> None:
    assert "softmax.int" in recovered(program_of(function, Q, K, V), Canonicalize())


def test_products_with_parameters_are_linear_and_take_their_bias() -> None:
    matrix = nn.Parameter(randn(8, 3))
    bias = nn.Parameter(randn(3))
    program = program_of(lambda m, x: x @ m.matrix + m.bias, X, matrix=matrix, bias=bias)
    result = Canonicalize()(program)
    assert "aten.linear(%inputs_0, @matrix_transposed, @bias)" in str(result)
    assert list(result.parameters()) == ["bias", "matrix_transposed"]
    rows = program_of(lambda m, x: torch.addmm(m.bias, x.reshape(-1, 8), m.matrix), X, matrix=matrix, bias=bias)
    assert recovered(rows, Canonicalize()) == ["reshape", "linear"]


def test_a_matrix_that_is_read_elsewhere_is_turned_where_it_was_and_else_left() -> None:
    matrix = nn.Parameter(randn(8, 8))
    turned = program_of(lambda m, x: F.linear(x, m.matrix) @ m.matrix.t(), X, matrix=matrix)
    assert recovered(turned, Canonicalize()) == ["linear", "linear"]
    assert list(Canonicalize()(turned).parameters()) == ["matrix"]
    straight = program_of(lambda m, x: F.linear(x, m.matrix) @ m.matrix, X, matrix=matrix)
    assert recovered(straight, Canonicalize()) == ["linear", "matmul"]


def test_canonicalize_sees_through_what_stands_in_between() -> None:
    program = program_of(lambda m, x: x.clone() * torch.sigmoid(x.contiguous() + 0), X)
    assert recovered(program, Canonicalize()) == ["silu"]


def test_notes_and_a_second_run() -> None:
    program = program_of(lambda m, x: x * torch.sigmoid(x) + F.hardsigmoid(x) * x, X)
    result = RecoverOperators().run(program.copy())
    assert result.notes == ("hardswish recovered: 1", "silu recovered: 1")
    assert not RecoverOperators().run(result.program).modified


def test_gradients_are_those_of_the_formula() -> None:
    program = program_of(RMS[0], X, weight=WEIGHT)
    grads = []
    for each in (program, RecoverOperators()(program)):
        (each(X) * X.sin()).sum().backward()
        gradient = each.tensor("weight").grad
        assert gradient is not None
        grads.append(gradient.clone())
        gradient.zero_()
    torch.testing.assert_close(*grads)


STEPS: dict[str, Function] = {
    "silu": lambda m, x: x * torch.sigmoid(x),
    "gelu": lambda m, x: 0.5 * x * (1 + torch.erf(x / ROOT)),
    "rms": lambda m, x: x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + 1e-6),
    "layer": lambda m, x: centered(x) / torch.sqrt(centered(x).pow(2).mean(-1, keepdim=True) + 1e-5),
    "hardswish": lambda m, x: x * F.relu6(x + 3) / 6,
    "attend": lambda m, x: torch.softmax(x @ x.transpose(1, 2) * 0.3, -1) @ x,
    "square": lambda m, x: x * x * 0.1,
    "double": lambda m, x: x * 2 + 1,
    "shared": lambda m, x: x + torch.sigmoid(x) * x,
}


@settings(max_examples=10, deadline=None, database=None, phases=[Phase.generate, Phase.shrink])
@given(steps=st.lists(st.sampled_from(sorted(STEPS)), min_size=1, max_size=6), canonical=st.booleans())
def test_chains_of_formulas_keep_their_outputs(steps: list[str], canonical: bool) -> None:
    def function(m: Any, x: Tensor) -> Tensor:
        for step in steps:
            x = STEPS[step](m, x)
        return x

    x = X.double() / 3
    program = program_of(function, x)
    found = recovered(program, Canonicalize() if canonical else RecoverOperators())
    assert found.count("rms_norm") == steps.count("rms")
    assert found.count("layer_norm") == steps.count("layer")
    assert found.count("gelu") == steps.count("gelu")
    assert found.count("silu") == steps.count("silu") + steps.count("shared")
    assert found.count("scaled_dot_product_attention") == steps.count("attend")


Add = Callable[..., fx.Node]


def rms_chain(add: Add, x: fx.Node) -> fx.Node:
    spread = add(aten.add.Tensor, (add(aten.mean.dim, (add(aten.mul.Tensor, (x, x)), [-1], True)), 1e-6))
    return add(aten.mul.Tensor, (x, add(aten.rsqrt.default, (spread,))))


def squares(add: Add, x: fx.Node) -> fx.Node:
    return add(aten.mul.Tensor, (x, x))


def scales(add: Add, x: fx.Node) -> fx.Node:
    return add(aten.mul.Tensor, (x, 0.9))


def chain(nodes: int, link: Callable[[Add, fx.Node], fx.Node]) -> Program:
    graph = fx.Graph()
    value = graph.placeholder("x")
    while len(graph.nodes) < nodes:
        value = link(graph.call_function, value)
    graph.output((value,))
    leaf = Structure("leaf")
    spec = TensorSpec("x", torch.float32, (4,))
    return Program.build(graph, {}, Signature((spec,), Structure("tuple", (leaf,)), Structure("dict"), leaf))


@pytest.mark.parametrize("link", [rms_chain, squares, scales])
def test_time_is_linear_in_the_number_of_nodes(link: Callable[[Add, fx.Node], fx.Node]) -> None:
    seconds = []
    for nodes in (250, 2_000):
        program = chain(nodes, link)
        start = time.process_time()
        RecoverOperators().run(program)
        seconds.append(time.process_time() - start)
    assert seconds[1] < 8 * 4 * seconds[0] + 0.5  # quadratic would be 64 times
