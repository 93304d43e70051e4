"""Half of a network's work cut out, in steps, by a criterion of one's own."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

import tersor as ts

from . import digits


@dataclass(frozen=True)
class Largest(ts.Criterion):
    """A channel is worth its largest weight, summed over the tensors that it goes from."""

    def score(self, group: ts.Group, gathered: Any) -> Tensor:
        """One number for each index of the group."""
        return torch.stack([member.rows().abs().amax(1) for member in group.members]).sum(0)


def main() -> None:
    """Train on handwritten digits, prune to half the multiply-accumulates in three steps, print how it went."""
    data = digits.load()
    model = digits.train(data, epochs=3, width=16)
    program = ts.trace(model, (data.test_images[:2],), dynamic={"x": {0: "batch"}})

    def accuracy(candidate: ts.Program) -> float:
        with torch.no_grad():
            return digits.accuracy(candidate(data.test_images), data.test_labels)

    batches = ts.ShuffledBatches(data.train_images, data.train_labels, size=64)
    step = ts.Gradually(
        compress=ts.PruneChannels(ts.Macs(0.5), Largest()),
        tune=ts.Finetune(batches, nn.functional.cross_entropy, epochs=1),
        steps=3,
        evaluate=accuracy,
    )
    result = ts.PassManager([step]).run(program)
    print(f"accuracy before: {accuracy(program):.4f}")
    print(*result.report.rows[-1].notes, sep="\n")
    macs = result.program.cost().macs / program.cost().macs
    print(f"multiply-accumulates left: {macs:.3f}; accuracy: {accuracy(result.program):.4f}")


if __name__ == "__main__":
    main()
