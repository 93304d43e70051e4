"""What is left computes what the whole would with the same indices silenced: on random graphs, for random choices."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tersor.ir.program import Program
from tersor.passes.pruning.analysis import dimensions

from .random_graphs import image_program, sequence_program
from .silencing import check, choose, close, cut_copy

seeds = st.integers(0, 2**31)


def inputs_of(program: Program, seed: int) -> tuple[torch.Tensor, ...]:
    generator = torch.Generator().manual_seed(seed)
    (spec,) = program.signature.inputs
    return (torch.randn([int(size) for size in spec.shape], generator=generator, dtype=torch.float64),)


@settings(max_examples=25, deadline=None)
@given(seeds)
def test_images(seed: int) -> None:
    program = image_program(seed)
    check(program, inputs_of(program, seed), seed, rtol=1e-9)


@settings(max_examples=25, deadline=None)
@given(seeds)
def test_sequences(seed: int) -> None:
    program = sequence_program(seed)
    check(program, inputs_of(program, seed), seed, rtol=1e-9)


@pytest.mark.slow
@pytest.mark.parametrize("build", [image_program, sequence_program])
def test_many(build: object) -> None:
    for seed in range(600):
        program = build(seed, 12)  # type: ignore[operator]
        check(program, inputs_of(program, seed), seed, rtol=1e-9)


def test_a_cut_program_can_be_cut_again() -> None:
    for seed in range(6):
        program = sequence_program(seed)
        for again in range(3):
            program = check(program, inputs_of(program, seed), again, share=0.3, rtol=1e-9)


def test_weights_set_to_zero_do_the_same_where_nothing_is_normalized() -> None:
    """An oracle that knows nothing of activations: the parameters alone, with zeros where indices go."""
    torch.manual_seed(0)
    for seed in range(8):
        program = image_program_without_statistics(seed)
        found = dimensions(program)
        keep = choose(found, seed)
        zeroed = program.copy()
        from tersor.passes.pruning.axes import Cutting

        cutting = Cutting(keep)
        for name, axes in found.tensors.items():
            tensor = zeroed.tensor(name).detach().clone()
            for dim, axis in enumerate(axes):
                tensor.index_fill_(dim, (~cutting.mask(axis)).nonzero().flatten(), 0)
            zeroed.set_tensor(name, tensor)
        inputs = inputs_of(program, seed)
        close(cut_copy(program, keep, found).run(inputs)[0].detach(), zeroed.run(inputs)[0].detach(), 1e-9)


def image_program_without_statistics(seed: int) -> Program:
    from . import random_graphs as graphs

    b = graphs.Builder(seed, (2, 3, 6, 6))
    x = graphs.convolution(b, b.input, 8)
    kinds = (graphs.convolution, graphs.batch_norm, graphs.activation, graphs.shuffle, graphs.halves, graphs.pooled)
    for _ in range(8):
        y = b.random.choice(kinds)(b, x)
        x = graphs.join(b, x, y)
    x = graphs.convolution(b, x, 4)
    flat = b.call(torch.ops.aten.flatten.using_ints, x, 1)
    return b.finish(graphs.dense(b, flat, 5))
