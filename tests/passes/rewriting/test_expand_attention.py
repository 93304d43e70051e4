"""Attention written out: the graph, and the numbers of the whole operator, whatever hides what."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention as attention

from tersor.frontends.torch_export import trace
from tersor.ir.program import Program
from tersor.passes.manager import PassManager
from tersor.passes.rewriting.expand_attention import ExpandAttention

Forward = Callable[..., Tensor]
GENERATOR = torch.Generator().manual_seed(0)
QUERY, KEY, VALUE = (torch.randn(2, 4, length, 8, generator=GENERATOR) for length in (5, 7, 7))
CHOICE = torch.rand(5, 7, generator=GENERATOR) < 0.6
CHOICE[:, 0] = True


class Model(nn.Module):
    def __init__(self, forward: Forward, mask: Tensor | None = None) -> None:
        super().__init__()
        self.function = forward
        self.mask = nn.Buffer(mask) if mask is not None else None

    def forward(self, *inputs: Tensor) -> Tensor:
        inputs = inputs if self.mask is None else (*inputs, self.mask)
        return self.function(*inputs)


def expanded(forward: Forward, *inputs: Tensor, mask: Tensor | None = None, **options: Any) -> Program:
    """Expanded, and judged by the pass manager, which compares the outputs."""
    program = trace(Model(forward, mask), inputs or (QUERY, KEY, VALUE), **options)
    return PassManager([ExpandAttention()]).run(program).program


def operators(program: Program) -> list[str]:
    calls = [node for node in program.graph.nodes if node.op == "call_function"]
    return [node.target._opname for node in calls]


def test_plain_attention_is_products_and_a_softmax() -> None:
    program = expanded(lambda q, k, v: attention(q, k, v))
    assert operators(program) == ["transpose", "matmul", "mul", "softmax", "matmul"]
    assert "aten.mul.Tensor(%matmul, 0.3535" in str(program)
    torch.testing.assert_close(program(QUERY, KEY, VALUE), attention(QUERY, KEY, VALUE))


def test_a_scale_of_its_own_is_taken() -> None:
    program = expanded(lambda q, k, v: attention(q, k, v, scale=0.5))
    torch.testing.assert_close(program(QUERY, KEY, VALUE), attention(QUERY, KEY, VALUE, scale=0.5))


@pytest.mark.parametrize("mask", [CHOICE, CHOICE.expand(2, 1, 5, 7), torch.zeros(5, 7).masked_fill(~CHOICE, -3e38)])
def test_a_constant_mask_is_inverted_once(mask: Tensor) -> None:
    program = expanded(lambda q, k, v, m: attention(attention(q, k, v, m), k, v, m), mask=mask)
    assert operators(program) == ["transpose", "matmul", "mul", "masked_fill", "softmax", "matmul"] * 2
    assert len(program.graph.find_nodes(op="get_attr")) == 1
    assert set(program.tensors()) == {"scaled_dot_product_attention_hidden"}
    once = attention(QUERY, KEY, VALUE, mask)
    torch.testing.assert_close(program(QUERY, KEY, VALUE), attention(once, KEY, VALUE, mask))


def test_a_row_that_a_computed_mask_hides_gives_zeros() -> None:
    def forward(q: Tensor, k: Tensor, v: Tensor, mask: Tensor) -> Tensor:
        return attention(q, k, v, mask)

    mask = CHOICE.clone()
    program = expanded(forward, QUERY, KEY, VALUE, mask)
    assert operators(program) == [
        "transpose", "matmul", "mul", "logical_not", "masked_fill", "_safe_softmax", "matmul",
    ]  # fmt: skip
    mask[2] = False
    found = program(QUERY, KEY, VALUE, mask)
    torch.testing.assert_close(found, attention(QUERY, KEY, VALUE, mask))
    assert bool((found[:, :, 2] == 0).all())


def test_a_row_that_a_constant_mask_hides_gives_zeros() -> None:
    mask = CHOICE.clone()
    mask[2] = False
    program = expanded(lambda q, k, v, m: attention(q, k, v, m), mask=mask)
    assert "_safe_softmax" in operators(program)
    assert bool((program(QUERY, KEY, VALUE)[:, :, 2] == 0).all())


def test_causal_attention_hides_what_comes_later() -> None:
    program = expanded(lambda q, k, v: attention(q, k, v, is_causal=True))
    assert operators(program) == ["transpose", "matmul", "mul", "masked_fill", "softmax", "matmul"]
    hidden = program.tensor("scaled_dot_product_attention_hidden")
    assert torch.equal(hidden, torch.arange(5).unsqueeze(1) < torch.arange(7))
    torch.testing.assert_close(program(QUERY, KEY, VALUE), attention(QUERY, KEY, VALUE, is_causal=True))


def test_shared_heads_are_repeated() -> None:
    key, value = KEY[:, :2], VALUE[:, :2]
    program = expanded(lambda q, k, v: attention(q, k, v, enable_gqa=True), QUERY, key, value)
    assert operators(program)[:2] == ["repeat_interleave", "repeat_interleave"]
    torch.testing.assert_close(program(QUERY, key, value), attention(QUERY, key, value, enable_gqa=True))


def test_what_cannot_be_written_out_is_left_and_named() -> None:
    bias = torch.randn(5, 7)
    cases = {
        "its mask is of numbers that are added": expanded(lambda q, k, v, m: attention(q, k, v, m), mask=bias),
        "causal over a dynamic length": expanded(
            lambda q, k, v: attention(q, k, v, is_causal=True), KEY, KEY, VALUE,
            dynamic={f"inputs_{place}": {2: "length"} for place in range(3)},
        ),
    }  # fmt: skip
    for reason, program in cases.items():
        assert operators(program) == ["scaled_dot_product_attention"]
        assert program.history[-1].notes == (f"1 left whole: {reason}",)
