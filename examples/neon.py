"""A network as a C library for ARM: integers only, no allocation, the same bits as the program.

It runs natively on ARM, and by qemu where there is none.

python -m examples.neon [OUT]
"""

from __future__ import annotations

import sys

import torch
from torch import nn

import tersor as ts
from tersor.backends.neon.backend import Neon


def main(out: str = "build/neon") -> None:
    """Quantize everything, lower, build and run; count the values that differ."""
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(3, 16, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(16, 16, 3), nn.ReLU(), nn.Flatten(),
        nn.Linear(576, 10),
    )  # fmt: skip
    batches = [torch.randn(2, 3, 16, 16) for _ in range(4)]
    program = ts.trace(model, batches[0], dynamic={"input": {0: "batch"}})
    steps = [ts.Quantize(calibration=batches, coverage=ts.Coverage.EVERYTHING), ts.LowerToInteger()]
    integer = ts.PassManager(steps).run(program).program

    artifact = ts.lower(integer, target=Neon(library="digits"), out=out)
    for name, size in artifact.report.files.items():
        print(f"{size:>8} {name}")
    differ = (artifact.run(batches[0]) != integer(batches[0])).sum()
    print(f"values that differ from the program: {differ}")


if __name__ == "__main__":
    main(*sys.argv[1:])
