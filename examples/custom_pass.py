"""A pass of one's own: replace silu by hardswish, which integer targets compute exactly."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import nn

import tersor as ts

aten = torch.ops.aten


@dataclass(frozen=True)
class ReplaceSilu(ts.Pass):
    """Replace silu with hardswish."""

    promise: ClassVar[ts.Promise] = ts.Promise.APPROXIMATE

    def run(self, program: ts.Program) -> ts.PassResult:
        """Swap the operator of each silu node."""
        nodes = program.graph.find_nodes(op="call_function", target=aten.silu.default)
        for node in nodes:
            node.target = aten.hardswish.default
        return ts.PassResult(program, modified=bool(nodes))


def main() -> None:
    """Run the pass on a small network and print the graph and the report."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(8, 16), nn.SiLU(), nn.Linear(16, 4))
    result = ts.PassManager([ReplaceSilu()]).run(ts.trace(model, torch.randn(2, 8)))
    print(result.program)
    print(result.report)


if __name__ == "__main__":
    main()
