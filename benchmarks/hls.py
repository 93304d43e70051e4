"""The hls target: seconds, mismatches, requantizers, cycles and sparsity.

Mismatches are values of the C simulation that differ from the integer stage, over random frames; beside them those of
hls4ml on the same QONNX file where it is installed (`pip install hls4ml`), with what it said where it failed.
Requantizers are counted a channel: bits of the multiplier, and adders of a circuit for its constant, beside 255
comparators and beside the multiplier with 32 bits of fraction. Cycles are from frame to frame, by formula and by the
cycle-level simulation. Resources are estimates by formula, not calibrated by synthesis. Weights are random, zeros in
blocks of 1 x 4 or whole channels.
"""

from __future__ import annotations

import json
import tempfile
import time
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from tersor.backends.hls.backend import Hls
from tersor.backends.hls.fifos import size_fifos
from tersor.backends.hls.folding import fold_for
from tersor.backends.hls.graph import Depthwise, Graph, MatrixVector
from tersor.backends.hls.parts import PARTS
from tersor.backends.hls.requantizer import Form, signed_digits
from tersor.ir.program import Program
from tersor.ir.requantize_forms import Ints, bit_length

from .fpga import peer, sparsity
from .fpga.models import MODELS, graph_of, lowered, snapped
from .results import Row

FRAMES = 8
PART = "zu9eg"
_COMPARATORS = 255
_FIXED_BITS = 32


def run(quick: bool) -> list[Row]:
    """Rows for every model; a quick run takes the smallest."""
    rows: list[Row] = []
    for name in list(MODELS)[: 1 if quick else None]:
        plain = MODELS[name].quantized()
        short = snapped(plain)
        rows += _simulated(name, short)
        for label, program in (("", plain), (" snapped", short)):
            rows += _requantizers(name + label, program)
        rows += _cycles(name, graph_of(short))
    return [*rows, *sparsity.rows()]


# -- rows ------------------------------------------------------------------------------------------------------------


def _simulated(name: str, program: Program) -> list[Row]:
    made = lowered(program)
    x = torch.randn(FRAMES, *MODELS[name].shape[1:], generator=torch.Generator().manual_seed(1)) * 2
    expected = torch.cat([made.run([frame[None]])[0] for frame in x])
    with tempfile.TemporaryDirectory() as folder:
        start = time.perf_counter()
        artifact = Hls(PART).emit(made, Path(folder))
        emitted = time.perf_counter()
        artifact.build()
        compiled = time.perf_counter()
        found = artifact.run(x)
        done = time.perf_counter()
        different, note = _peer(Path(folder), x, expected)
    seconds = f"emit {emitted - start:.1f}, compile {compiled - emitted:.1f}, simulate {done - compiled:.2f}"
    own = int((found != expected).sum())
    return [
        Row(f"{name}: emit, compile, simulate {FRAMES} frames", done - start, "s", note=seconds),
        Row(f"{name}: values that differ", own, f"of {expected.numel()}", different, peer.NAME, goal="0", note=note),
    ]


def _peer(folder: Path, x: Tensor, expected: Tensor) -> tuple[float | None, str]:
    scale = json.loads((folder / "interface.json").read_text())["outputs"][0]["scale"][0]
    return peer.compare(folder, x.numpy(), np.round(expected.numpy() / scale), scale)


def _requantizers(name: str, program: Program) -> list[Row]:
    graph = graph_of(program)
    units = [layer for layer in graph.layers if isinstance(layer, MatrixVector | Depthwise)]
    found = [unit.requantizer for unit in units if unit.requantizer is not None]
    bits = np.concatenate([bit_length(one.multiplier) for one in found])
    adders = np.concatenate([one.adders for one in found])
    fixed = np.concatenate([_fixed_adders(one.multiplier, one.shift) for one in found])
    floats = int(sum((one.form == Form.FLOAT).sum() for one in found))
    forms = f"{floats} of {len(bits)} channels emulate float32" if floats else "none emulates float32"
    return [
        Row(
            f"{name}: multiplier",
            float(bits.mean()),
            "bits",
            _FIXED_BITS,
            "32-bit multiplier",
            _FIXED_BITS / bits.mean(),
            note=forms,
        ),
        Row(
            f"{name}: adders",
            float(adders.mean()),
            "a channel",
            _COMPARATORS,
            "thresholds",
            _COMPARATORS / adders.mean(),
        ),
        Row(
            f"{name}: adders",
            float(adders.mean()),
            "a channel",
            float(fixed.mean()),
            "32-bit multiplier",
            fixed.mean() / adders.mean(),
        ),
    ]


def _fixed_adders(multiplier: Ints, shift: Ints) -> Ints:
    """Adders of the same multiplier with 32 significant bits, as a product of two arbitrary scales has them."""
    random = np.random.default_rng(0).integers(0, 1 << 8, len(multiplier))
    wide = (multiplier << (_FIXED_BITS - bit_length(multiplier))) + random
    adders: Ints = signed_digits(wide)
    return adders


def _cycles(name: str, graph: Graph) -> list[Row]:
    made = fold_for(graph, None, PARTS[PART])
    rows = []
    for share in (8, 64):
        found = size_fifos(fold_for(graph, max(made.cycles // share, 8), PARTS[PART]).design)
        measured, formula = found.timing.interval, found.formula
        what = f"{name}: cycles a frame at 1/{share} of the least parallel"
        rows.append(Row(what, measured, "cycles", formula, "formula", measured / formula, "within 1 %"))
    return rows
