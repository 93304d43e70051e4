"""A network as a dataflow of integer streams for an FPGA: C++ for Vitis HLS, simulated here by g++.

python -m examples.fpga [OUT]
"""

from __future__ import annotations

import sys

import torch
from torch import nn

import tersor as ts


def main(out: str = "build/fpga") -> None:
    """Quantize with snapped scales, lower, simulate; count the values that differ."""
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(1, 8, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(8, 8, 3), nn.ReLU(), nn.Flatten(),
        nn.Linear(32, 4),
    )  # fmt: skip
    batches = [torch.randn(2, 1, 8, 8) for _ in range(4)]
    program = ts.trace(model, batches[0], dynamic={"input": {0: "batch"}})
    steps = [ts.Quantize(calibration=batches, coverage=ts.Coverage.EVERYTHING), ts.SnapScales(), ts.LowerToInteger()]
    integer = ts.PassManager(steps).run(program).program

    artifact = ts.lower(integer, target="hls", out=out)
    print(*artifact.report.notes, sep="\n")
    differ = (artifact.run(batches[0]) != integer(batches[0])).sum()
    print(f"values that differ from the program: {differ}")


if __name__ == "__main__":
    main(*sys.argv[1:])
