"""Residual blocks: which are found, what is left when they go, and in what order they go."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
import torch
from torch import Tensor, fx, nn

import tersor as ts
from tersor.passes.pruning.remove_blocks import residual_blocks


class Block(nn.Module):
    """A pre-norm block whose branch is scaled."""

    def __init__(self, width: int, scale: float) -> None:
        super().__init__()
        self.norm, self.up, self.down = nn.LayerNorm(width), nn.Linear(width, 2 * width), nn.Linear(2 * width, width)
        self.scale = scale

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.down(torch.relu(self.up(self.norm(x)))) * self.scale
        return x + y


def program(scales: Sequence[float] = (1.0, 0.01, 0.5, 0.02)) -> ts.Program:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 16), *(Block(16, scale) for scale in scales), nn.Linear(16, 3))
    return ts.trace(model.eval(), (torch.randn(4, 6),))


BATCHES = [torch.randn(4, 6, generator=torch.Generator().manual_seed(seed)) for seed in range(3)]


class Silenced(fx.Interpreter):
    """The program as it was, with the branches of some additions taken as zero."""

    def __init__(self, module: fx.GraphModule, sums: set[str], branches: dict[str, str]) -> None:
        super().__init__(module)
        self.sums, self.branches = sums, branches

    def run_node(self, n: fx.Node) -> Any:
        if n.name not in self.sums:
            return super().run_node(n)
        (args, kwargs) = self.fetch_args_kwargs_from_env(n)
        names = [getattr(arg, "name", "") for arg in n.args]
        kept = [
            torch.zeros_like(v) if name == self.branches[n.name] else v for name, v in zip(names, args, strict=True)
        ]
        return n.target(*kept, **kwargs)  # type: ignore[operator]


def test_the_blocks_are_the_residual_additions() -> None:
    found = residual_blocks(program())
    assert [block.name.split(".")[0] for block in found] == ["1", "2", "3", "4"]


def test_a_formula_is_no_block() -> None:
    """x + 0.04 x^3, as in an activation that is written out, has nothing in it that could be removed."""

    class Cubic(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x + 0.04 * x.pow(3)

    model = nn.Sequential(nn.Linear(6, 6), Cubic(), nn.Linear(6, 3))
    assert not residual_blocks(ts.trace(model.eval(), (torch.randn(4, 6),)))


def test_what_is_left_is_the_program_with_the_branches_silenced() -> None:
    given = program()
    blocks = residual_blocks(given)
    cut = ts.RemoveBlocks(count=2, criterion=ts.BlockInfluence(BATCHES))(given)
    gone = {block.sum.name for block in blocks} - {node.name for node in cut.graph.nodes}
    assert len(gone) == 2
    oracle = Silenced(given.module, gone, {block.sum.name: block.branch.name for block in blocks})
    (expected,) = oracle.run(BATCHES[0])
    torch.testing.assert_close(cut(BATCHES[0]), expected)
    assert cut.cost().parameters < given.cost().parameters


def test_the_least_influence_goes_first() -> None:
    row = (
        ts.PassManager([ts.RemoveBlocks(count=2, criterion=ts.BlockInfluence(BATCHES))]).run(program()).report.rows[-1]
    )
    assert "2 of 4 blocks went: 2." in row.notes[0]
    assert "4." in row.notes[0]


def test_blocks_go_until_the_target_is_met() -> None:
    given = program()
    cut = ts.RemoveBlocks(target=ts.Parameters(0.5), criterion=ts.BlockInfluence(BATCHES))(given)
    assert cut.cost().parameters / given.cost().parameters == pytest.approx(0.5, abs=0.13)


def test_all_blocks_can_go_and_names_choose() -> None:
    assert not residual_blocks(ts.RemoveBlocks(count=4, criterion=ts.BlockInfluence(BATCHES))(program()))
    cut = ts.RemoveBlocks(count=1, criterion=ts.BlockInfluence(BATCHES), blocks=(r"^1\.",))(program())
    assert [block.name.split(".")[0] for block in residual_blocks(cut)] == ["2", "3", "4"]


def test_errors() -> None:
    with pytest.raises(ts.TersorError, match="there are 4 blocks"):
        ts.RemoveBlocks(count=5, criterion=ts.BlockInfluence(BATCHES))(program())
    with pytest.raises(ts.TersorError, match="BlockInfluence needs data"):
        ts.RemoveBlocks(count=1)(program())
    with pytest.raises(ts.TersorError, match="either a count or a target"):
        ts.RemoveBlocks()
    with pytest.raises(ts.TersorError, match="cannot be reached by blocks alone"):
        ts.RemoveBlocks(target=ts.Macs(0.01), criterion=ts.BlockInfluence(BATCHES))(program())
