"""A transformer quantized three ways: static int8, dynamic int8, and 4-bit weights.

The model is BERT from its `transformers` config, small and with random weights: nothing is downloaded.

python -m examples.quantize_transformer [OUT]
"""

from __future__ import annotations

import sys
from pathlib import Path

import torch
from transformers import BertConfig, BertModel

import tersor as ts


def main(out: str = "build/quantize_transformer") -> None:
    """Quantize, lower, and print size and exactness of each."""
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=512, hidden_size=64, num_hidden_layers=2, num_attention_heads=4, intermediate_size=128
    )
    model = BertModel(config)
    texts = [{"input_ids": torch.randint(512, (2, 16)), "attention_mask": torch.ones(2, 16).long()} for _ in range(4)]
    program = ts.trace(model, kwargs=texts[0], dynamic={name: {0: "batch", 1: "words"} for name in texts[0]})
    exact = program(**texts[1])["last_hidden_state"]

    plain = ts.lower(program, target="onnxruntime", out=Path(out) / "float")
    print(f"float    {plain.report.files['model.onnx']:>8} bytes")
    for name, step in (
        ("static", ts.Quantize(calibration=texts)),
        ("dynamic", ts.QuantizeDynamic(per_token=True)),
        ("weights", ts.QuantizeWeights(bits=4, block=32, calibration=texts)),
    ):
        result = ts.PassManager([step], progress=False).run(program)
        artifact = ts.lower(result.program, target="onnxruntime", out=Path(out) / name)
        found = artifact.run(**texts[1])["last_hidden_state"]
        sqnr = 10 * torch.log10(exact.square().mean() / (found - exact).square().mean())
        print(f"{name:8} {artifact.report.files['model.onnx']:>8} bytes, {sqnr:.1f} dB in ONNX Runtime")


if __name__ == "__main__":
    main(*sys.argv[1:])
