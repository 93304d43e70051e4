"""Quantization by blocks and at run time: the formulas in numpy, shapes, gradients, the verifier."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from tersor.frontends.torch_export import trace
from tersor.ir.block_operators import FAKE_QUANTIZE_BLOCKS, FAKE_QUANTIZE_DYNAMIC, dynamic_grid
from tersor.ir.errors import VerificationError
from tersor.ir.program import Program
from tersor.passes.quantization.insert_weight_blocks import InsertWeightBlocks


@pytest.mark.parametrize("axis", [-1, 0, 1])
@pytest.mark.parametrize("size", [8, 10])
def test_each_block_is_rounded_on_its_own_grid(axis: int, size: int) -> None:
    generator = torch.Generator().manual_seed(0)
    shape = [6, 5]
    shape[axis] = size
    x = torch.randn(shape, generator=generator) * 3
    blocks = list(shape)
    blocks[axis] = -(-size // 4)
    scale = torch.rand(blocks, generator=generator) + 0.1
    zero = torch.randint(-8, 8, blocks, generator=generator, dtype=torch.int32)
    found = FAKE_QUANTIZE_BLOCKS(x, scale, zero, axis, 4, -8, 7).numpy()
    for place in np.ndindex(*shape):
        block = list(place)
        block[axis] //= 4
        s, z = np.float32(scale[tuple(block)]), int(zero[tuple(block)])
        q = np.clip(np.rint(np.float32(x[place]) / s) + z, -8, 7)
        assert found[place] == np.float32((q - z) * s)


def test_the_gradient_is_straight_through_inside_and_learned_step_size_for_scales() -> None:
    x = torch.tensor([[0.3, 5.0, -0.6, 0.2]], requires_grad=True)
    scale = torch.tensor([[0.5, 0.25]], requires_grad=True)
    zero = torch.zeros(1, 2, dtype=torch.int32)
    FAKE_QUANTIZE_BLOCKS(x, scale, zero, -1, 2, -8, 7).sum().backward()
    assert x.grad is not None
    assert scale.grad is not None
    assert x.grad.tolist() == [[1.0, 0.0, 1.0, 1.0]]
    expected = [(1 - 0.6) + 7, (-2 + 2.4) + (1 - 0.8)]
    assert scale.grad[0].tolist() == pytest.approx(expected, abs=1e-5)


def test_a_dynamic_grid_spans_the_value_and_zero() -> None:
    x = torch.tensor([[1.0, 2.0, 3.0], [-0.5, 0.0, 0.25]])
    scale, zero = dynamic_grid(x, False)
    assert scale.item() == pytest.approx(3.5 / 255)
    assert zero.item() == round(0.5 / (3.5 / 255)) - 128
    scale, zero = dynamic_grid(x, True)
    assert scale.flatten().tolist() == pytest.approx([3 / 127, 0.5 / 127])
    for per_token in (False, True):
        y = FAKE_QUANTIZE_DYNAMIC(x, per_token)
        step = dynamic_grid(x, per_token)[0]
        assert bool(((y - x).abs() <= step / 2 + 1e-6).all())
    assert torch.equal(FAKE_QUANTIZE_DYNAMIC(torch.zeros(2, 3), True), torch.zeros(2, 3))


def blocked() -> Program:
    torch.manual_seed(0)
    return InsertWeightBlocks()(trace(torch.nn.Linear(70, 4), (torch.randn(2, 70),)))


def test_a_program_with_blocks_is_saved_printed_and_counted(tmp_path: Path) -> None:
    program = blocked()
    assert "tersor.fake_quantize_blocks(@weight, scale=[" in str(program)
    loaded = Program.load(program.save(tmp_path / "p.tersor"))
    x = torch.randn(2, 70)
    assert torch.equal(loaded(x), program(x))
    assert program.cost().parameter_bytes == 70 * 4 // 2 + 3 * 4 * 4 + 3 * 4 // 2 + 16


def test_the_verifier_refuses_parameters_that_do_not_fit() -> None:
    program = blocked()
    (node,) = program.graph.find_nodes(op="call_function", target=FAKE_QUANTIZE_BLOCKS)
    program.set_tensor(str(node.args[1].target), torch.ones(4, 2))
    node.args[1].meta["val"] = torch.ones(4, 2)
    with pytest.raises(VerificationError, match="do not fit"):
        program.verify()
