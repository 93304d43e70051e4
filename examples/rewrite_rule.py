"""A rewrite given as two plain functions: what to look for, and what to put in its place."""

from __future__ import annotations

import torch
from torch import Tensor, nn

import tersor as ts


def pattern(x: Tensor) -> Tensor:
    """GELU's tanh approximation, written out."""
    return 0.5 * x * (1.0 + torch.tanh(0.7978845608 * (x + 0.044715 * torch.pow(x, 3.0))))


def replacement(x: Tensor) -> Tensor:
    """The same as one operator."""
    return torch.nn.functional.gelu(x, approximate="tanh")


class Net(nn.Module):
    """A linear layer with that activation."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(8, 8)

    def forward(self, x: Tensor) -> Tensor:
        """float32[n, 8] to the same."""
        return pattern(self.linear(x))


def main() -> None:
    """Rewrite and print both graphs."""
    program = ts.trace(Net(), torch.randn(2, 8))
    result = ts.PassManager([ts.Rewrite(pattern, replacement)]).run(program)
    print(program)
    print(result.program)
    print(result.report)


if __name__ == "__main__":
    main()
