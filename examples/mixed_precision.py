"""The precision of each layer, chosen by an error budget: a plan to read, edit and replay.

python -m examples.mixed_precision [OUT]
"""

from __future__ import annotations

import sys
from pathlib import Path

import torch
from torch import nn

import tersor as ts


def main(out: str = "build/mixed_precision") -> None:
    """Search a plan for a small network of linears, carry it out, and compare with one precision for all."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(64, 256), nn.GELU(), nn.Linear(256, 256), nn.GELU(), nn.Linear(256, 16))
    batches = [torch.randn(32, 64) for _ in range(4)]
    program = ts.trace(model, batches[0], dynamic={"input": {0: "batch"}})

    plan = ts.search_precision(program, batches, sqnr=24.0)
    Path(out).mkdir(parents=True, exist_ok=True)
    print(plan.save(Path(out) / "plan.yaml").read_text())
    for name, step in (
        ("the plan", ts.ApplyPrecision(f"{out}/plan.yaml", calibration=batches)),
        ("int8", ts.Quantize(ts.INT8, calibration=batches)),
        ("4-bit weights", ts.QuantizeWeights(calibration=batches)),
    ):
        row = ts.PassManager([step], progress=False).run(program).report.rows[-1]
        print(f"{name:14} {row.bytes:>7} bytes, {row.sqnr_total:.1f} dB")


if __name__ == "__main__":
    main(*sys.argv[1:])
