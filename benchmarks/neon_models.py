"""Whole models on the neon target: instructions of a run, peak memory, and the share outside of convolution kernels.

ResNet-8 on handwritten digits, MobileNetV2 and ResNet-50 from their `transformers` configs with random weights: dense,
pruned to half of their multiply-accumulates, and with three of four blocks of 4x4 or 4x8 weights zero. Each is counted
under emulation on every instruction set, in the run that compares its outputs with the program's, bit for bit.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import tersor as ts
from tersor.backends.neon.backend import Neon
from tersor.backends.neon.emit import variant_of
from tersor.backends.neon.machine import Machine
from tersor.backends.neon.steps import Convolution
from tersor.ir.program import Program
from tersor.ir.quantization import Observer
from tersor.ir.sparsity import Block
from tersor.passes.base import Pass
from tersor.passes.manager import PassManager
from tersor.passes.pruning.prune_channels import PruneChannels
from tersor.passes.pruning.targets import Macs
from tersor.passes.quantization.placement import Coverage
from tersor.passes.sparsity.sparsify import Sparsify

from .neon.counting import count_model
from .results import Row

CPUS = {"neon": "cortex-a53", "dotprod": "cortex-a76", "i8mm": "max"}
OUTSIDE = 0.05


@dataclass(frozen=True)
class Case:
    """A model, the shape of its input, and the forms that it is counted in."""

    name: str
    make: Callable[[], nn.Module]
    shape: tuple[int, ...]
    forms: tuple[str, ...] = ("dense", "pruned", "4x4 sparse", "4x8 sparse")


class Logits(nn.Module):
    """The logits of a classifier of transformers."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, x: Tensor) -> Any:
        """float32[batch, 3, rows, width] to float32[batch, classes]."""
        return self.model(x).logits


def _mobilenet() -> nn.Module:
    import transformers

    config = transformers.MobileNetV2Config(initializer_range=0.2)
    config.num_labels = 1000
    return Logits(transformers.MobileNetV2ForImageClassification(config))


def _resnet() -> nn.Module:
    import transformers

    config = transformers.ResNetConfig()
    config.num_labels = 1000
    return Logits(transformers.ResNetForImageClassification(config))


def _digits() -> nn.Module:
    from examples.digits import DigitsNet

    return DigitsNet(32)


def cases(quick: bool) -> list[Case]:
    """ResNet-8 and a small MobileNetV2 where it has to be quick."""
    small = [Case("ResNet-8, digits", _digits, (1, 1, 8, 8))]
    if quick:
        return [*small, Case("MobileNetV2, 64 x 64", _mobilenet, (1, 3, 64, 64), ("dense",))]
    size = (1, 3, 224, 224)
    return [*small, Case("MobileNetV2", _mobilenet, size), Case("ResNet-50", _resnet, size)]


def run(quick: bool) -> list[Row]:
    """Three rows a model, form and instruction set: instructions, bytes, and the share outside."""
    return [row for case in cases(quick) for form in case.forms for row in rows_of(case, form)]


def rows_of(case: Case, form: str) -> Iterator[Row]:
    """Three rows for each instruction set."""
    torch.manual_seed(0)
    sample = torch.randn(case.shape)
    program = _quantized(ts.trace(case.make().eval(), sample), form, sample)
    with torch.no_grad():
        expected = program.run([sample])
    with tempfile.TemporaryDirectory() as folder:
        artifact = ts.lower(program, Neon(), out=Path(folder))
        for isa, cpu in CPUS.items():
            counts = count_model(artifact.on(Machine(isa=isa, cpu=cpu)), [sample], expected)  # type: ignore[attr-defined]  # Neon's
            variant = variant_of(program, isa)
            steps = list(zip(variant.plan.steps, counts.steps, strict=True))
            outside = sum(count for step, count in steps if not isinstance(step, Convolution)) / sum(counts.steps)
            what = f"{case.name}, {form}, {isa}"
            macs = sum(step.macs for step in variant.plan.steps)
            note = f"{macs / 1e6:.1f} M MACs, {counts.total / macs:.4f} a MAC"
            yield Row(what, counts.total / 1e6, "M instructions", note=note)
            yield Row(f"{what}: arena", variant.arena.size / 1e3, "kB")
            missed = "" if outside <= OUTSIDE else "goal missed"
            yield Row(f"{what}: outside of convolutions", 100 * outside, "%", goal=f"<= {OUTSIDE:.0%}", note=missed)


def _quantized(program: Program, form: str, sample: Tensor) -> Program:
    batches = [torch.randn(sample.shape) for _ in range(2)]
    shrinking: dict[str, list[Pass]] = {
        "pruned": [PruneChannels(target=Macs(0.5), multiple=8)],
        "4x4 sparse": [Sparsify(Block(4, 4, 0.25))],
        "4x8 sparse": [Sparsify(Block(4, 8, 0.25))],
    }
    quantize = ts.Quantize(
        ts.INT8, calibration=batches, observer=Observer.MIN_MAX, coverage=Coverage.EVERYTHING, correct_bias=False
    )
    return PassManager([*shrinking.get(form, []), quantize, *Neon().passes()], progress=False).run(program).program
