"""A trained convolutional network to INT8, lowered to ONNX Runtime, accuracy and size before and after.

python -m examples.quantize_cnn [OUT]
"""

from __future__ import annotations

import sys

import torch

import tersor as ts

from . import digits


def main(out: str = "build/quantize_cnn") -> None:
    """Train a small network on handwritten digits, quantize it, lower it, compare."""
    data = digits.load()
    program = ts.trace(digits.train(data, epochs=3, width=8), (data.test_images[:2],), dynamic={"x": {0: "batch"}})
    result = ts.PassManager([ts.Quantize(ts.INT8, calibration=data.batches())]).run(program)
    print(result.report)

    artifact = ts.lower(result.program, target="onnxruntime", out=out)
    print(f"{artifact.report.integer_share:.0%} of the multiply-accumulates in integer")
    with torch.no_grad():
        for name, run in (("float", program), ("int8", result.program), ("int8 in ONNX Runtime", artifact.run)):
            print(f"{name:22} {digits.accuracy(run(data.test_images), data.test_labels):.2%}")
    found = ts.analyze(result.program, data.batches()[:2], reference=program)
    print("where the error comes from:", ", ".join(row.node for row in found.worst))


if __name__ == "__main__":
    main(*sys.argv[1:])
