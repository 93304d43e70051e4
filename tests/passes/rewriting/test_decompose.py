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
from tersor.passes.rewriting.decompose import Decompose


class Model(nn.Module):
    def __init__(self, function: Callable[..., Any]) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.function = function
        self.norm = nn.BatchNorm2d(3)
        assert self.norm.running_var is not None
        self.norm.running_var.uniform_(0.5, 2)
        self.weight = nn.Parameter(torch.randn(8, 8))

    def forward(self, x: Tensor) -> Any:
        return self.function(self, x)


X = torch.randn(3, 3, 8, 8, generator=torch.Generator().manual_seed(0))


def program_of(function: Callable[..., Any]) -> Program:
    return trace(Model(function).eval(), (X,), dynamic={"x": {0: "n"}})


def calls(program: Program) -> list[str]:
    return [line.split(" = ", 1)[1] for line in str(program).splitlines() if " = " in line]


def test_silu_is_its_definition() -> None:
    program = program_of(lambda m, x: F.silu(x) + 1)
    result = Decompose(("aten.silu",))(program)
    assert str(result).splitlines()[2:] == [
        "  input %x : float32[n, 3, 8, 8]",
        "  %sigmoid : float32[n, 3, 8, 8] = aten.sigmoid(%x)",
        "  %mul : float32[n, 3, 8, 8] = aten.mul.Tensor(%x, %sigmoid)",
        f"  %{result.outputs[0].name} : float32[n, 3, 8, 8] = aten.add.Tensor(%mul, 1)",
        f"  return output=%{result.outputs[0].name}",
    ]
    sigmoid, mul = [node for node in result.graph.nodes if node.name in ("sigmoid", "mul")]
    assert mul.meta[REPLACES] == "silu"
    assert REPLACES not in sigmoid.meta
    assert sigmoid.meta["origin"] == mul.meta["origin"]
    assert result.history[-1].notes == ("aten.silu decomposed: 1",)
    assert Decompose(("aten.silu",)).promise is Promise.EXACT


CASES: dict[str, Callable[[Any, Tensor], Any]] = {
    "aten.silu": lambda m, x: F.silu(x),
    "aten.gelu": lambda m, x: F.gelu(x),
    "aten.hardswish": lambda m, x: F.hardswish(x),
    "aten.relu6": lambda m, x: F.relu6(x),
    "aten.elu": lambda m, x: F.elu(x, 0.5),
    "aten.softmax": lambda m, x: F.softmax(x, 1),
    "aten.layer_norm": lambda m, x: F.layer_norm(x, (8,), m.weight[0]),
    "aten.group_norm": lambda m, x: F.group_norm(x, 3),
    "aten.batch_norm": lambda m, x: m.norm(x),
    "aten.linear": lambda m, x: F.linear(x, m.weight, m.weight[0]),
    "aten.matmul": lambda m, x: x @ m.weight,
    "aten.einsum": lambda m, x: torch.einsum("bchw,bchv->bhwv", x, x),
    "aten.scaled_dot_product_attention": lambda m, x: F.scaled_dot_product_attention(x, x, x, is_causal=True),
    "aten.split": lambda m, x: x.split(4, -1),
    "aten.unbind.int": lambda m, x: torch.unbind(x, 1)[2],
    "aten.repeat_interleave.self_int": lambda m, x: x.repeat_interleave(2, 1),
}


@pytest.fixture(scope="module")
def every_case() -> Program:
    return program_of(lambda m, x: [function(m, x) for function in CASES.values()])


@pytest.mark.parametrize("name", CASES)
def test_definitions_give_the_same_numbers_for_any_batch(name: str, every_case: Program) -> None:
    result = Decompose((name,))(every_case)
    assert any(call.startswith((f"{name}(", f"{name}.")) for call in calls(every_case))
    assert not any(call.startswith((f"{name}(", f"{name}.")) for call in calls(result))
    for batch in (3, 5):
        x = torch.randn(batch, 3, 8, 8)
        torch.testing.assert_close(result(x), every_case(x), rtol=1e-5, atol=1e-5)


def test_nested_definitions_are_followed_for_chosen_operators_only() -> None:
    program = program_of(lambda m, x: F.layer_norm(x, (8,)))
    outer = Decompose(("aten.layer_norm",))(program)
    assert [call.partition("(")[0] for call in calls(outer)] == ["aten.native_layer_norm", "getitem"]
    inner = Decompose(("aten.layer_norm", "aten.native_layer_norm"))(program)
    assert "aten.rsqrt" in [call.partition("(")[0] for call in calls(inner)]
    assert not any("layer_norm" in call for call in calls(inner))
    assert inner.outputs[0].meta[REPLACES] == "layer_norm"
    torch.testing.assert_close(inner(X), program(X), rtol=1e-5, atol=1e-5)


def test_what_is_not_chosen_is_left() -> None:
    program = program_of(lambda m, x: F.gelu(x))
    result = Decompose(("aten.silu",)).run(program.copy())
    assert not result.modified
    assert str(result.program) == str(program)


def test_gradients_pass_through_a_definition() -> None:
    program = program_of(lambda m, x: F.silu(F.linear(x, m.weight)))
    result = Decompose(("aten.silu",))(program)
    gradients = [torch.autograd.grad(p(X).sum(), [p.tensor("weight")])[0] for p in (program, result)]
    torch.testing.assert_close(gradients[0], gradients[1], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    ("name", "hint"),
    [
        ("aten.siluu", "aten.silu"),
        ("silu", "aten.silu"),
        ("aten.softmax.itn", "aten.softmax.int"),
        ("qqqq.zzzzzzzz", "write it as print"),
    ],
)
def test_an_unknown_name_says_what_was_meant(name: str, hint: str) -> None:
    with pytest.raises(PassError, match=f"no operator '{name}'") as error:
        Decompose((name,))
    assert hint in str(error.value.hint)


def test_an_operator_without_a_definition_is_refused() -> None:
    with pytest.raises(PassError, match=r"torch defines aten.topk by no other"):
        Decompose(("aten.topk",))


def test_a_definition_outside_the_ir_is_refused_with_the_node() -> None:
    program = program_of(lambda m, x: x + 1)
    with pytest.raises(PassError, match="does not fit the IR") as error:
        Decompose(("aten.add.Tensor",))(program)
    assert error.value.node == program.outputs[0].name
