"""Let sparse weights move: drop the smallest, grow where the gradient is largest, train, again."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from tersor.ir.errors import PassError
from tersor.ir.program import Program
from tersor.ir.sparsity import Unstructured
from tersor.ir.stage import Stage

from ..base import Pass, PassResult, Promise, finished
from ..progress import track
from ..pruning.gathering import Loss, gradients, require_data

_STEP = 1e-3
"""What a grown weight begins with at most, as a share of the mean magnitude: a small step down its gradient."""


@dataclass(frozen=True)
class Regrow(Pass):
    """RigL (Evci et al. 2020, arXiv:1911.11134): the density stays, which weights are zero changes.

    Each round drops a share of every sparse weight's values, the smallest, grows as many zeros whose gradient is the
    largest, and tunes. The share falls to nothing along a half cosine. A grown weight begins a small step down its
    gradient, so that it is not zero and training does not hold it.

    batches, loss: what gradients are taken from. tune: a pass that trains, such as `Finetune(batches, loss)`.
    rounds: how often. share: of the values that are not zero, what is moved in the first round.

    Only unstructured entries of the sparsity table are moved. Raises PassError where there are none.
    """

    takes: ClassVar[frozenset[Stage]] = frozenset({Stage.FLOAT, Stage.FAKE_QUANT})
    promise: ClassVar[Promise] = Promise.TRAINED

    batches: Iterable[Any] | None = None
    loss: Loss | None = None
    tune: Pass | None = None
    rounds: int = 3
    share: float = 0.3

    def __post_init__(self) -> None:
        if self.rounds < 1 or not 0 < self.share < 1:
            found = f"rounds={self.rounds}, share={self.share:g}"
            raise PassError("not options of Regrow", expected="rounds >= 1 and share in (0, 1)", found=found)

    def run(self, program: Program) -> PassResult:
        """Drop, grow, tune, for as many rounds."""
        batches = require_data(self, self.batches, self.loss)
        names = [name for name, pattern in program.sparsity.items() if isinstance(pattern, Unstructured)]
        if not names:
            raise PassError("no weight is sparse without structure", hint="Sparsify(Unstructured(0.1)) before")
        moved = 0
        for round_ in track(range(self.rounds), "regrow"):
            share = self.share / 2 * (1 + math.cos(math.pi * round_ / self.rounds))
            gradient = _mean_gradient(program, batches, self.loss)
            for name in names:
                weight, count = _exchange(program.tensor(name).detach(), gradient.get(name), share)
                program.set_tensor(name, weight)
                moved += count
            if self.tune is not None:
                program = finished(self.tune, self.tune.run(program)).program
        return PassResult(program, True, (f"{moved} values moved in {self.rounds} rounds",))


def _mean_gradient(program: Program, batches: Iterable[Any], loss: Any) -> dict[str, Tensor]:
    total: dict[str, Tensor] = {}
    for found in gradients(program, batches, loss):
        for name, gradient in found.items():
            total[name] = total.get(name, torch.zeros(())) + gradient
    return total


def _exchange(weight: Tensor, gradient: Tensor | None, share: float) -> tuple[Tensor, int]:
    """The smallest values that are not zero against the zeros of the largest gradient."""
    flat = weight.flatten().clone()
    active = flat != 0
    slopes = flat.new_zeros(len(flat), dtype=torch.float32) if gradient is None else gradient.flatten().to(flat.dtype)
    growable = int((~active & (slopes != 0)).sum())
    count = min(int(share * int(active.sum())), growable)
    if not count:
        return weight, 0
    size = flat[active].abs().mean()
    dropped = torch.where(active, flat.abs(), math.inf).topk(count, largest=False).indices
    grown = torch.where(active, -1.0, slopes.abs()).topk(count).indices
    flat[dropped] = 0
    step = slopes[grown] / slopes[grown].abs().max()
    flat[grown] = -_STEP * size * torch.where(step.abs() < 1e-3, 1e-3 * step.sign(), step)
    return flat.reshape(weight.shape), count
