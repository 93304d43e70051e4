from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tersor.frontends.torch_export import trace
from tersor.ir.errors import PassError
from tersor.ir.program import REPLACES, Program
from tersor.passes.base import Promise
from tersor.passes.rewriting.matching import find_matches
from tersor.passes.rewriting.rewrite import Rewrite, trace_pattern


class Model(nn.Module):
    def __init__(self, function: Callable[..., Any]) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.function = function
        self.weight = nn.Parameter(torch.randn(4, 4))
        self.conv = nn.Conv2d(3, 4, 3)
        self.norm = nn.BatchNorm2d(4)
        assert self.norm.running_var is not None
        self.norm.running_var.uniform_(0.5, 2)

    def forward(self, x: Tensor) -> Any:
        return self.function(self, x)


def program_of(function: Callable[..., Any], x: Tensor, dynamic: Any = None) -> Program:
    return trace(Model(function).eval(), (x,), dynamic=dynamic)


def calls(program: Program) -> list[str]:
    """The calls of a program's text, without types."""
    return [line.split(" = ", 1)[1] for line in str(program).splitlines() if " = " in line]


X = torch.randn(2, 4, generator=torch.Generator().manual_seed(0))


def swish(x: Tensor) -> Tensor:
    return x * torch.sigmoid(x)


def silu(x: Tensor) -> Tensor:
    return F.silu(x)


def test_an_occurrence_is_replaced_and_carries_what_it_stands_for() -> None:
    program = program_of(lambda m, x: swish(F.linear(x, m.weight)) + 1, X)
    result = Rewrite(swish, silu)(program)
    assert calls(result) == ["aten.linear(%x, @weight)", "aten.silu(%linear)", "aten.add.Tensor(%silu, 1)"]
    torch.testing.assert_close(result(X), program(X))
    (made,) = result.graph.find_nodes(op="call_function", target=torch.ops.aten.silu.default)
    assert made.meta[REPLACES] == "mul"
    assert "origin" in made.meta
    assert result.history[-1].notes == ("swish rewritten: 1",)
    assert result.history[-1].options["pattern"] == "swish"


@pytest.mark.parametrize(
    "model",
    [
        lambda m, x: torch.sigmoid(x) * x,
        lambda m, x: x * torch.sigmoid(x),
        lambda m, x: torch.sigmoid(m.weight) * m.weight,
    ],
)
def test_operands_of_commutative_operators_match_in_either_order(model: Callable[..., Any]) -> None:
    program = program_of(model, X)
    result = Rewrite(swish, silu)(program)
    assert any("aten.silu" in call for call in calls(result))
    torch.testing.assert_close(result(X), program(X))


@pytest.mark.parametrize(
    "model",
    [
        lambda m, x: (lambda s: x * s + s)(torch.sigmoid(x)),
        lambda m, x: x * torch.sigmoid(x + 1),
        lambda m, x: x / torch.sigmoid(x),
        lambda m, x: (lambda s: (x * s, s))(torch.sigmoid(x)),
    ],
)
def test_what_is_used_elsewhere_or_is_other_is_left(model: Callable[..., Any]) -> None:
    program = program_of(model, X)
    result = Rewrite(swish, silu).run(program.copy())
    assert not result.modified
    assert str(result.program) == str(program)


def test_operands_of_other_operators_keep_their_places() -> None:
    def pattern(x: Tensor, y: Tensor) -> Tensor:
        return torch.relu(x) - y

    program = program_of(lambda m, x: (x - torch.relu(x), torch.relu(x) - x), X)
    assert len(find_matches(program.graph, trace_pattern(pattern, {}))) == 1

    def scaled(x: Tensor, y: Tensor) -> Tensor:
        return torch.add(torch.relu(x), y, alpha=2)

    program = program_of(lambda m, x: (torch.add(x.relu(), x, alpha=2), torch.add(x, x.relu(), alpha=2)), X)
    assert len(find_matches(program.graph, trace_pattern(scaled, {}))) == 1


def capped(x: Tensor, cap: float) -> Tensor:
    return torch.clamp(x, 0.0, cap) / cap


def uncapped(x: Tensor, cap: float) -> Tensor:
    return 1 - torch.relu(1 - torch.relu(x) / cap)


def test_a_wildcard_is_one_constant_everywhere_and_reaches_the_replacement() -> None:
    program = program_of(lambda m, x: (capped(x, 6.0), capped(x, 2), torch.clamp(x, 0.0, 3.0) / 4.0), X)
    result = Rewrite(capped, uncapped)(program)
    assert result.history[-1].notes == ("capped rewritten: 2",)
    for new, old in zip(result(X), program(X), strict=True):
        torch.testing.assert_close(new, old)
    assert "aten.div.Tensor(%relu, 6.0)" in calls(result)
    assert "aten.clamp(%x, 0.0, 3.0)" in calls(result)


def test_an_int_wildcard_may_be_an_axis() -> None:
    def pattern(x: Tensor, axis: int) -> Tensor:
        return F.softmax(x, axis)

    def replacement(x: Tensor, axis: int) -> Tensor:
        return torch.exp(F.log_softmax(x, axis))

    program = program_of(lambda m, x: F.softmax(x, 1) + F.softmax(x, -1) + F.softmax(x, 0), X)
    result = Rewrite(pattern, replacement)(program)
    assert result.history[-1].notes == ("pattern rewritten: 3",)
    torch.testing.assert_close(result(X), program(X))


def test_arguments_left_out_equal_their_defaults_and_other_constants_have_to_be_equal() -> None:
    def pattern(x: Tensor) -> Tensor:
        return F.leaky_relu(x, 0.01)

    program = program_of(lambda m, x: (F.leaky_relu(x), F.leaky_relu(x, 0.1)), X)
    assert len(find_matches(program.graph, trace_pattern(pattern, {}))) == 1


def test_sizes_that_the_replacement_reads_are_those_of_the_occurrence() -> None:
    def pattern(x: Tensor) -> Tensor:
        return torch.relu(x)

    def replacement(x: Tensor) -> Tensor:
        return torch.where(x > 0, x, torch.zeros_like(x)).reshape(x.shape[0], -1).reshape(x.shape)

    image = torch.randn(2, 3, 5, 5)
    program = program_of(lambda m, x: torch.relu(x[:, 1:]).sum() + torch.relu(x), image, dynamic={"x": {0: "n"}})
    result = Rewrite(pattern, replacement)(program)
    assert result.history[-1].notes == ("pattern rewritten: 2",)
    for batch in (2, 5):
        x = torch.randn(batch, 3, 5, 5)
        torch.testing.assert_close(result(x), program(x))


def test_convolution_and_batch_norm_with_parameters() -> None:
    def pattern(x: Tensor, w: Tensor, b: Tensor, g: Tensor, h: Tensor, m: Tensor, v: Tensor, eps: float) -> Tensor:
        return F.batch_norm(F.conv2d(x, w, b), m, v, g, h, eps=eps)

    def replacement(x: Tensor, w: Tensor, b: Tensor, g: Tensor, h: Tensor, m: Tensor, v: Tensor, eps: float) -> Tensor:
        scale = g / torch.sqrt(v + eps)
        return F.conv2d(x, w * scale.reshape(-1, 1, 1, 1), (b - m) * scale + h)

    vector, image = torch.rand(4), torch.randn(1, 4, 5, 5)
    examples: dict[str, Any] = {"x": image, "w": torch.randn(4, 4, 3, 3)}
    examples |= dict.fromkeys("bghmv", vector)
    x = torch.randn(2, 3, 8, 8)
    program = program_of(lambda m, x: m.norm(m.conv(x)).relu(), x)
    result = Rewrite(pattern, replacement, examples)(program)
    assert not any("batch_norm" in call for call in calls(result))
    torch.testing.assert_close(result(x), program(x), rtol=1e-5, atol=1e-5)
    training = Rewrite(pattern, replacement, examples).run(program.copy().train())
    assert not training.modified


def both(x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    return x - y, torch.add(y, x)


def stacked(x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    z = torch.stack([x - y, x + y])
    return z[0], z[1]


@pytest.mark.parametrize(
    "model",
    [
        lambda m, x: (x.sin() - x.cos(), x.sin() * 2 + 1, x.relu()),
        lambda m, x: (lambda a, b: (a - b, (a + b).relu()))(x.sin(), x.cos()),
        lambda m, x: (lambda a, b: ((a + b).relu(), a - b))(x.sin(), x.cos()),
        lambda m, x: (lambda a, b: a - b + (a + b))(x.sin(), x.cos()),
    ],
)
def test_several_outputs(model: Callable[..., Any]) -> None:
    program = program_of(model, X)
    result = Rewrite(both, stacked)(program)
    expected = 0 if any("Tensor(%sin_1, 2)" in call for call in calls(program)) else 1
    assert result.history[-1].notes == (f"both rewritten: {expected}",)
    torch.testing.assert_close(result(X), program(X))


def test_an_output_that_feeds_an_input_of_the_same_occurrence_is_left() -> None:
    program = program_of(lambda m, x: (lambda a: (a - x, x + a))(x.sin()), X)
    assert Rewrite(both, stacked).run(program.copy()).modified

    def pattern(x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        return torch.sin(x), torch.cos(y)

    program = program_of(lambda m, x: torch.cos(torch.sin(x)), X)
    result = Rewrite(pattern, lambda x, y: (x, y)).run(program.copy())
    assert not result.modified


def test_occurrences_do_not_overlap_and_may_feed_each_other() -> None:
    def pattern(x: Tensor, y: Tensor, z: Tensor) -> Tensor:
        return x + y + z

    def replacement(x: Tensor, y: Tensor, z: Tensor) -> Tensor:
        return torch.stack([x, y, z]).sum(0)

    program = program_of(lambda m, x: x + 1 + x.sin() + x.cos() + x.tan() + x.exp() + x.relu(), X)
    result = Rewrite(pattern, replacement)(program)
    assert result.history[-1].notes == ("pattern rewritten: 2",)
    torch.testing.assert_close(result(X), program(X))
    assert not Rewrite(swish, swish).run(result).modified


def test_where_chooses() -> None:
    program = program_of(lambda m, x: swish(x) + swish(x.sin()), X)
    chosen = Rewrite(swish, silu, where=lambda match: match.inputs["x"].op == "placeholder")(program)
    assert [call for call in calls(chosen) if call.startswith("aten.silu(")] == ["aten.silu(%x)"]


def test_the_promise_is_exact_unless_said_otherwise() -> None:
    assert Rewrite(swish, silu).promise is Promise.EXACT
    assert Rewrite(swish, silu, approximate=True).promise is Promise.APPROXIMATE


def computes(x: Tensor, n: float) -> Tensor:
    return x * (n + 1)


def branches(x: Tensor, n: float) -> Tensor:
    return x * n if n == 0.5 else x + n


def ignores(x: Tensor, y: Tensor) -> Tensor:
    return x * 2


def ignores_wildcard(x: Tensor, n: int) -> Tensor:
    return x * 2


def fails(x: Tensor) -> Tensor:
    raise ValueError("no such luck")


def gives_input(x: Tensor) -> tuple[Tensor, Tensor]:
    return x * 2, x


def makes_tensor(x: Tensor) -> Tensor:
    return x + torch.tensor([1.0])


@pytest.mark.parametrize(
    ("pattern", "message"),
    [
        (computes, "computes with its wildcard 'n'"),
        (branches, "another graph for another value"),
        (ignores, "does not use its parameter 'y'"),
        (ignores_wildcard, "does not use its wildcard 'n'"),
        (fails, "fails cannot be traced: .*no such luck"),
        (gives_input, "returns what it did not compute"),
        (makes_tensor, "makes a tensor of its own"),
    ],
)
def test_patterns_that_cannot_be_matched_are_refused(pattern: Callable[..., Any], message: str) -> None:
    with pytest.raises(PassError, match=message):
        trace_pattern(pattern, {})


@pytest.mark.parametrize(
    ("replacement", "message"),
    [
        (lambda x: (x, x), "another number of tensors"),
        (lambda x: x.double(), "another type"),
        (lambda x: x.reshape(7), "cannot be traced"),
    ],
)
def test_replacements_that_do_not_fit_are_refused(replacement: Callable[..., Any], message: str) -> None:
    with pytest.raises(PassError, match=message):
        Rewrite(swish, replacement)(program_of(lambda m, x: swish(x), X))


def test_a_replacement_asks_for_what_the_pattern_has() -> None:
    with pytest.raises(PassError, match="no parameter 'z'"):
        Rewrite(swish, lambda z: z)


def test_a_replacement_may_bring_a_constant_tensor() -> None:
    program = program_of(lambda m, x: swish(x), X)
    result = Rewrite(swish, lambda x: x + torch.tensor([1.0, 2, 3, 4]), approximate=True)(program)
    torch.testing.assert_close(result(X), X + torch.tensor([1.0, 2, 3, 4]))
