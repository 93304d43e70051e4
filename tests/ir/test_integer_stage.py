"""The verifier's rules about integers: each is broken once, and named."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, fx

from tersor.ir import integer_norms as norms
from tersor.ir import integer_operators as ops
from tersor.ir import signature
from tersor.ir.errors import VerificationError
from tersor.ir.program import Program
from tersor.ir.stage import Stage
from tersor.ir.structure import Structure

TABLE = torch.zeros(256, dtype=torch.int8)
EXPONENTIALS = norms.exponential_table(0.1)
SCALE = torch.tensor(0.1)


def program(target: Callable[..., Tensor], *arguments: Any, stage: Stage = Stage.INTEGER) -> Program:
    """quantize(x), then one operator on it; tensors among its arguments are constants of the program."""
    graph, tensors = fx.Graph(), {"scale": SCALE}
    x = graph.placeholder("x")
    q = graph.call_function(ops.QUANTIZE, (x, graph.get_attr("scale"), 0, -128, 127))
    given: list[Any] = []
    for place, argument in enumerate(arguments):
        if isinstance(argument, Tensor):
            tensors[f"t{place}"] = argument
            argument = graph.get_attr(f"t{place}")
        given.append(argument)
    result = graph.call_function(target, (q, *given))
    graph.output((result,))
    leaf = Structure("leaf")
    specs = (signature.TensorSpec("x", torch.float32, (1, 8, 4, 4)),)
    made = signature.Signature(specs, Structure("tuple", (leaf,)), Structure("dict"), leaf)
    return Program.build(graph, tensors, made, stage=stage)


WEIGHT, BIAS = torch.ones(4, 8, 1, 1, dtype=torch.int8), torch.zeros(4, dtype=torch.int32)
WINDOW = [1, 1], [0, 0], [1, 1], 1
GRID = 0, -128, 127

GOOD: dict[str, tuple[Any, ...]] = {
    "int_conv": (ops.INT_CONV, WEIGHT, BIAS, 0, *WINDOW),
    "int_lookup": (ops.INT_LOOKUP, TABLE),
    "int_softmax": (norms.INT_SOFTMAX, EXPONENTIALS, -1, 1 << 50, *GRID),
    "a softmax that hides": (norms.INT_SOFTMAX, EXPONENTIALS, -1, 1 << 50, *GRID, torch.ones(4, dtype=torch.bool)),
    "int_normalize": (norms.INT_NORMALIZE, None, None, 0, 1, 0, True),
    "dequantize": (ops.DEQUANTIZE, SCALE, 0, None),
}


@pytest.mark.parametrize("name", GOOD)
def test_what_is_well_formed_passes(name: str) -> None:
    program(*GOOD[name]).verify()


BAD: dict[str, tuple[str, tuple[Any, ...]]] = {
    "a weight of int32": ("an operand has the wrong type", (ops.INT_CONV, WEIGHT.int(), BIAS, 0, *WINDOW)),
    "a bias of int8": ("an operand has the wrong type", (ops.INT_CONV, WEIGHT, BIAS.to(torch.int8), 0, *WINDOW)),
    "requantized int8": ("an operand has the wrong type", (ops.REQUANTIZE, SCALE, *GRID)),
    "a zero point beyond int8": ("zero_point is out of range", (ops.INT_CONV, WEIGHT, BIAS, 128, *WINDOW)),
    "a bias that overflows": ("can overflow int32", (ops.INT_CONV, WEIGHT, BIAS + (1 << 31) - 1, 0, *WINDOW)),
    "a scale of zero": ("not positive and finite", (ops.DEQUANTIZE, torch.tensor(0.0), 0, None)),
    "an infinite scale": ("not positive and finite", (ops.DEQUANTIZE, torch.tensor(torch.inf), 0, None)),
    "a short table": ("a table is a tensor of the program", (ops.INT_LOOKUP, TABLE[:255].clone())),
    "a table that rises": (
        "a table is not of exponentials", (norms.INT_SOFTMAX, EXPONENTIALS.flip(0), -1, 1 << 50, *GRID),
    ),
    "a numerator of zero": ("numerator is out of range", (norms.INT_SOFTMAX, EXPONENTIALS, -1, 0, *GRID)),
    "a grid upside down": ("not one of int8", (norms.INT_SOFTMAX, EXPONENTIALS, -1, 1 << 50, 0, 5, -5)),
    "a grid beyond int8": ("not one of int8", (norms.INT_SOFTMAX, EXPONENTIALS, -1, 1 << 50, 0, -128, 128)),
    "a mask of numbers": (
        "what is hidden is not a mask", (norms.INT_SOFTMAX, EXPONENTIALS, -1, 1 << 50, *GRID, torch.ones(4)),
    ),
    "a huge epsilon": ("epsilon is out of range", (norms.INT_NORMALIZE, None, None, 0, 1, 1 << 61, True)),
    "a sum with a negative scale": (
        "a scale is not positive and finite", (ops.INT_ADD, TABLE[:4].clone(), 0.1, 0, 0.1, 0, -0.1, *GRID),
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", BAD)
def test_what_is_not_is_named(name: str) -> None:
    what, arguments = BAD[name]
    if what == "what is hidden is not a mask":  # torch itself refuses to fill by numbers
        made = program(*arguments[:-1], torch.ones(4, dtype=torch.bool))
        made.set_tensor("t6", torch.ones(4))
        made.graph.find_nodes(op="get_attr", target="t6")[0].meta["val"] = torch.ones(4, device="meta")
    else:
        made = program(*arguments)
    with pytest.raises(VerificationError, match=what):
        made.verify()


def test_integer_operators_belong_to_their_stage() -> None:
    with pytest.raises(VerificationError, match="before its stage"):
        program(*GOOD["int_lookup"], stage=Stage.FAKE_QUANT).verify()


def test_a_weight_that_is_computed_leaves_the_accumulator_without_a_bound() -> None:
    made = program(*GOOD["int_conv"])
    (node,) = made.graph.find_nodes(op="call_function", target=ops.INT_CONV)
    (weight,) = made.graph.find_nodes(op="get_attr", target="t0")
    with made.graph.inserting_before(node):
        copied = made.call(torch.ops.aten.clone.default, (weight,), like=node)
    node.update_arg(1, copied)
    with pytest.raises(VerificationError, match="its accumulator has no bound"):
        made.verify()
