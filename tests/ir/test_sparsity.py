"""Patterns of zeros against counting by hand."""

from __future__ import annotations

import itertools
import json

import pytest
import torch
from torch import Tensor

from tersor.ir.sparsity import NM, PATTERNS, Block, Channel, Pattern, Unstructured, pattern_from_json, pattern_to_json

SHAPES = [(4, 8), (4, 8, 3, 3), (2, 4, 5), (8,)]


def sparse(shape: tuple[int, ...], keep: float, seed: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(shape, generator=generator) * (torch.rand(shape, generator=generator) < keep)


def rows(weight: Tensor) -> list[list[list[float]]]:
    """For each output channel, for each kernel position, the values along the input channels, in plain Python."""
    if weight.dim() == 1:
        return [[weight.tolist()]]
    positions = list(itertools.product(*(range(size) for size in weight.shape[2:])))
    return [
        [[float(weight[o, i][place]) for i in range(weight.shape[1])] for place in positions]
        for o in range(weight.shape[0])
    ]


def has_n_m(weight: Tensor, n: int, m: int) -> bool:
    for row in itertools.chain(*rows(weight)):
        if len(row) % m:
            return False
        for start in range(0, len(row), m):
            if sum(value != 0 for value in row[start : start + m]) > n:
                return False
    return True


def block_density(weight: Tensor, height: int, width: int) -> float:
    matrix = [list(itertools.chain(*row)) for row in rows(weight)]
    blocks = [
        any(value for row in matrix[top : top + height] for value in row[left : left + width])
        for top in range(0, len(matrix), height)
        for left in range(0, len(matrix[0]), width)
    ]
    return sum(blocks) / len(blocks)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize(("n", "m"), [(2, 4), (1, 2), (1, 4), (3, 4), (2, 3)])
def test_n_of_m(shape: tuple[int, ...], n: int, m: int) -> None:
    seen = set()
    for seed, keep in itertools.product(range(6), (0.1, 0.5, 0.9)):
        weight = sparse(shape, keep, seed)
        holds = has_n_m(weight, n, m)
        assert (NM(n, m).violation(weight) is None) == holds
        seen.add(holds)
    assert seen == {True, False} or m == 3 or len(shape) > 1


def test_n_of_m_along_the_input_channels_of_each_kernel_position() -> None:
    weight = torch.zeros(1, 4, 1, 2)
    weight[0, :, 0, 0] = torch.tensor([1.0, 1, 0, 0])
    assert NM(2, 4).violation(weight) is None
    weight[0, 2, 0, 0] = 1
    assert NM(2, 4).violation(weight) == "1 of 2 groups have more than 2 of 4 values"
    assert "not a multiple of 4" in str(NM(2, 4).violation(torch.zeros(2, 6)))


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize(("height", "width"), [(1, 4), (2, 2), (4, 1), (3, 5)])
def test_blocks(shape: tuple[int, ...], height: int, width: int) -> None:
    for seed, keep in itertools.product(range(4), (0.02, 0.2, 0.8)):
        weight = sparse(shape, keep, seed)
        found = block_density(weight, height, width)
        assert Block(height, width, min(found + 0.01, 1.0)).violation(weight) is None
        if found > 0.02:
            assert "block density" in str(Block(height, width, found - 0.01).violation(weight))


@pytest.mark.parametrize("shape", SHAPES)
def test_density(shape: tuple[int, ...]) -> None:
    weight = sparse(shape, 0.5, 0)
    found = sum(value != 0 for value in weight.flatten().tolist()) / weight.numel()
    assert Unstructured(found).violation(weight) is None
    assert Unstructured(found - 1 / weight.numel()).violation(weight) is not None


def test_channels() -> None:
    weight = torch.randn(4, 3, 2)
    weight[1] = weight[3] = 0
    assert Channel((1, 3)).violation(weight) is None
    assert Channel(()).violation(weight) is None
    assert Channel((0, 1)).violation(weight) == "channels [0] are not zero"
    assert Channel((4,)).violation(weight) == "channels [4] are not zero"
    assert Channel((-1,)).violation(weight) == "channels [-1] are not zero"


@pytest.mark.parametrize(
    "make",
    [
        lambda: Unstructured(0),
        lambda: Unstructured(1.1),
        lambda: NM(4, 4),
        lambda: NM(0, 4),
        lambda: Block(0, 1, 0.5),
        lambda: Block(1, 1, 0),
    ],
)
def test_patterns_that_mean_nothing(make: object) -> None:
    assert callable(make)
    with pytest.raises(ValueError, match=r"density|N:M|block"):
        make()


@pytest.mark.parametrize("pattern", [Unstructured(0.25), NM(2, 4), Block(4, 1, 0.5), Channel((0, 3)), Channel(())])
def test_patterns_as_plain_data(pattern: Pattern) -> None:
    assert pattern_from_json(json.loads(json.dumps(pattern_to_json(pattern)))) == pattern
    assert PATTERNS[pattern.name] is type(pattern)


@pytest.mark.parametrize("data", [{}, {"pattern": "x"}, {"pattern": "n_m"}, {"pattern": "n_m", "n": 1, "m": 4, "z": 1}])
def test_data_of_another_shape(data: dict[str, object]) -> None:
    with pytest.raises((KeyError, TypeError, ValueError)):
        pattern_from_json(data)
