"""C simulation against the integer stage: no bit differs, in the outputs and in every stream."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from tersor.backends.hls.artifact import HlsArtifact
from tersor.backends.hls.backend import Hls
from tersor.backends.hls.build import Builder
from tersor.backends.hls.golden import integers
from tersor.backends.hls.rules import RULES
from tersor.ir.program import Program
from tersor.ir.quantization import INT4, INT8, W4A8, Scheme

from .architectures import ARCHITECTURES
from .models import DsCnn, Mixed, MobileNetV2, ResNet, emitted, jet_tagger, quantized, sequence

pytestmark = pytest.mark.usefixtures("compiler")


def frames(program: Program) -> Tensor:
    """Random frames, wide ones that every grid clamps, both extremes, and zeros; back to back."""
    shape = [int(size) for size in program.signature.inputs[0].shape[1:]]
    generator = torch.Generator().manual_seed(11)
    random = torch.randn(3, *shape, generator=generator)
    ends = torch.stack([torch.full(shape, value) for value in (-1e4, 1e4, 0.0)])
    checkered = (torch.randint(0, 2, (1, *shape), generator=generator) * 2 - 1) * 1e4
    return torch.cat([random, random[:1] * 20, ends, checkered])


def agree(program: Program, artifact: HlsArtifact) -> None:
    """The outputs, and what every stream carries."""
    x = frames(program)
    held = [integers(program, [frame[None]]) for frame in x]
    outputs = artifact.run(x)
    found = outputs if isinstance(outputs, tuple) else (outputs,)
    for index, tensor in enumerate(found):
        name = program.outputs[index].name
        assert torch.equal(tensor, torch.cat([values[name] for values in held]))
    builder = Builder(program, RULES).build()
    carried = dict(artifact.layers([x]))
    checked = 0
    for node, value in builder.values.items():
        stream = value.stream
        if stream.name not in carried or stream.node != node.name:
            continue
        order = value.order.reshape(-1)
        expected = np.stack([values[node.name].reshape(-1).numpy() for values in held])
        np.testing.assert_array_equal(carried[stream.name].numpy()[:, order] + stream.low, expected, node.name)
        checked += 1
    assert checked >= len([layer for layer in builder.layers if not layer.y.side])


QUICK: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...], Scheme]] = {
    "jet tagger": (jet_tagger, (1, 16), INT8),
    "jet tagger of 4 bits": (jet_tagger, (1, 16), INT4),
    "residuals": (lambda: ResNet(4), (1, 3, 12, 12), INT8),
    "depthwise": (lambda: DsCnn(6, 1), (1, 1, 49, 10), W4A8),
    "all the rest": (Mixed, (1, 3, 16, 12), INT8),
    "all the rest of 4 bits": (Mixed, (1, 3, 16, 12), INT4),
    "sequence": (sequence, (1, 3, 16), INT8),
}


@pytest.mark.parametrize("name", QUICK)
def test_no_bit_differs(name: str, tmp_path: Path) -> None:
    make, shape, scheme = QUICK[name]
    torch.manual_seed(7)
    agree(*emitted(quantized(make(), shape, scheme), tmp_path, Hls()))


COVERED = ("grouped", "odd channels", "mixed along positions")
"""What the others have too, in parts; left to the slow run."""


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=[pytest.mark.slow] if name in COVERED else []) for name in ARCHITECTURES]
)
def test_no_bit_differs_where_values_move(name: str, tmp_path: Path) -> None:
    make, shape = ARCHITECTURES[name]
    torch.manual_seed(7)
    agree(*emitted(quantized(make(), shape), tmp_path, Hls("u50" if len(name) % 2 else "zynq7020")))


SLOW: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    "ResNet-8": (ResNet, (1, 3, 32, 32)),
    "DS-CNN": (DsCnn, (1, 1, 49, 10)),
    "MobileNetV2": (MobileNetV2, (1, 3, 64, 64)),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", SLOW)
@pytest.mark.parametrize("scheme", [INT8, INT4], ids=["int8", "int4"])
def test_no_bit_differs_in_whole_models(name: str, scheme: Scheme, tmp_path: Path) -> None:
    make, shape = SLOW[name]
    torch.manual_seed(7)
    agree(*emitted(quantized(make(), shape, scheme), tmp_path, Hls("zu9eg")))
