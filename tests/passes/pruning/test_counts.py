"""Channel counts by name: what stays, the same as a share comes to, and what is refused."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

import tersor as ts
from tersor.ir.errors import PassError


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c = nn.Conv2d(3, 8, 3), nn.Conv2d(8, 12, 3), nn.Conv2d(12, 12, 1)
        self.head = nn.Linear(12, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.b(torch.relu(self.a(x))))
        logits: Tensor = self.head((x + self.c(x)).mean((2, 3)))
        return logits


@pytest.fixture(scope="module")
def program() -> ts.Program:
    torch.manual_seed(0)
    return ts.trace(Net().eval(), torch.randn(2, 3, 8, 8))


def test_as_many_stay_as_are_named(program: ts.Program) -> None:
    """Those of the largest weights; what is not named stays whole. An addition ties both of its sides together."""
    pruned = ts.PruneChannels(counts={"a.weight": 5, "b.weight": 7})(program)
    assert pruned.tensor("a.weight").shape[0] == 5
    assert pruned.tensor("b.weight").shape[:2] == (7, 5)
    assert pruned.tensor("c.weight").shape[:2] == (7, 7)
    whole = ts.PruneChannels(counts={"a.weight": 5})(program)
    assert whole.tensor("b.weight").shape[:2] == (12, 5)


def test_what_a_share_comes_to_is_the_same_by_name(program: ts.Program) -> None:
    step = ts.PruneChannels(ts.Macs(0.4))
    counts = step.allot(program)
    assert set(counts) == {"a.weight", "b.weight"}
    by_share, by_name = step(program), ts.PruneChannels(counts=counts)(program)
    assert all(torch.equal(tensor, by_name.tensor(name)) for name, tensor in by_share.tensors().items())


def test_a_recipe_holds_counts(program: ts.Program, tmp_path: Path) -> None:
    step = ts.PruneChannels(counts={"a.weight": 5, "b.weight": 7})
    (read,) = ts.load_recipe(ts.save_recipe([step], tmp_path / "recipe.yaml"))
    assert read == step


def test_counts_are_reached_in_steps(program: ts.Program) -> None:
    step = ts.PruneChannels(counts={"a.weight": 2, "b.weight": 1})
    once, slowly = step(program), ts.Gradually(step, steps=3)(program)
    assert {n: t.shape for n, t in once.tensors().items()} == {n: t.shape for n, t in slowly.tensors().items()}


@pytest.mark.parametrize(
    ("counts", "words"),
    [
        ({"d.weight": 3}, r"'d.weight' is no axis that can shrink here"),
        ({"head.weight": 3}, r"'head.weight' is no axis"),
        ({"a.weight": 0}, r"a.weight cannot have that many"),
        ({"a.weight": 9}, r"1 to 8"),
        ({"a.weight": 2.5}, r"2.5"),
    ],
)
def test_other_names_and_counts_are_refused(program: ts.Program, counts: dict[str, int], words: str) -> None:
    with pytest.raises(PassError, match=words):
        ts.PruneChannels(counts=counts)(program)


def test_axes_that_are_kept_cannot_be_named(program: ts.Program) -> None:
    step = dataclasses.replace(ts.PruneChannels(counts={"a.weight": 5}), keep=("a.weight",))
    with pytest.raises(PassError, match="no axis that can shrink"):
        step(program)
