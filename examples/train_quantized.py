"""Quantization-aware training to 4 bits and below, with the float network as its own teacher.

python -m examples.train_quantized [OUT]
"""

from __future__ import annotations

import sys

from torch import Tensor
from torch.nn import functional as F

import tersor as ts

from . import digits

BITS = ts.Scheme(ts.QuantType(3), ts.QuantType(2, symmetric=True, granularity=ts.INT8.weight.granularity))
"""3-bit activations, 2-bit weights."""


def main(out: str = "build/train_quantized") -> None:
    """Train in float, quantize, train quantized, lower; print what each is worth."""
    data = digits.load()
    program = ts.trace(digits.train(data, epochs=4, width=16), (data.test_images[:2],), dynamic={"x": {0: "batch"}})
    rounded = ts.PassManager([ts.Quantize(BITS, calibration=data.batches())]).run(program).program

    batches = ts.ShuffledBatches(data.train_images, data.train_labels, size=64)
    options = ts.Training(epochs=3, learning_rate=2e-3, warmup=0.1)
    result = ts.PassManager([ts.TrainQuantized(batches, F.cross_entropy, BITS, training=options)]).run(program)
    print(result.program)
    print(result.report)

    artifact = ts.lower(result.program, target="onnxruntime", out=out)
    for name, run in (
        ("float", program),
        ("rounded after training", rounded),
        ("trained quantized", result.program),
        ("the same in ONNX Runtime", artifact.run),
    ):
        logits: Tensor = run(data.test_images)
        print(f"{name:26} {digits.accuracy(logits, data.test_labels):.2%}")


if __name__ == "__main__":
    main(*sys.argv[1:])
