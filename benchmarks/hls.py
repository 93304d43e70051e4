"""The hls target: seconds, mismatches, requantizers, cycles and sparsity.

Mismatches are values of the C simulation that differ from the integer stage, over random frames; beside them those of
hls4ml on the same QONNX file where it is installed, with what it said where it failed. Requantizers are counted a
channel: bits of the multiplier, and adders of a circuit for its constant, beside 255 comparators and beside the
multiplier with 32 bits of fraction. Cycles are from frame to frame, by formula and by the cycle-level simulation.
Resources are estimates by formula, not calibrated by synthesis. Weights are random, zeros in blocks of 1 x 4.
"""

from __future__ import annotations

import itertools
import tempfile
import time
import warnings
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from tersor.backends.hls.backend import Hls
from tersor.backends.hls.build import Builder
from tersor.backends.hls.design import Fold, choices, design, follows
from tersor.backends.hls.fifos import size_fifos
from tersor.backends.hls.folding import fold_for
from tersor.backends.hls.graph import Depthwise, Graph, MatrixVector
from tersor.backends.hls.parts import PARTS
from tersor.backends.hls.requantizer import Ints, bit_length, signed_digits
from tersor.backends.hls.resources import estimate, total
from tersor.backends.hls.rules import RULES
from tersor.frontends.torch_export import trace
from tersor.ir.errors import TersorError
from tersor.ir.program import Program
from tersor.passes.manager import PassManager
from tersor.passes.quantization.placement import Coverage
from tersor.passes.quantization.quantize import Quantize
from tersor.passes.quantization.snap_scales import SnapScales

from .results import Row

FRAMES = 8
PART = "zu9eg"
PEER = "hls4ml"
_COMPARATORS = 255
_FIXED_BITS = 32


def run(quick: bool) -> list[Row]:
    """Rows for every model; a quick run takes the smallest."""
    rows: list[Row] = []
    for name in list(MODELS)[: 1 if quick else None]:
        plain, snapped = _programs(name)
        rows += _simulated(name, snapped)
        rows += [
            row
            for label, program in (("", plain), (" snapped", snapped))
            for row in _requantizers(name + label, program)
        ]
        rows += _cycles(name, _graph(snapped))
    return [*rows, *_sparsity()]


# -- models ----------------------------------------------------------------------------------------------------------


def _jet_tagger() -> nn.Module:
    widths = (16, 64, 32, 32)
    layers = [layer for a, b in itertools.pairwise(widths) for layer in (nn.Linear(a, b), nn.ReLU())]
    return nn.Sequential(*layers, nn.Linear(32, 5))


def _resnet8() -> nn.Module:
    from transformers import ResNetConfig, ResNetForImageClassification

    sizes = [16, 32, 64]
    config = ResNetConfig(embedding_size=16, hidden_sizes=sizes, depths=[1, 1, 1], layer_type="basic")
    return _Logits(ResNetForImageClassification(config))


def _mobilenet_v2() -> nn.Module:
    from transformers import MobileNetV2Config, MobileNetV2ForImageClassification

    config = MobileNetV2Config(depth_multiplier=0.35, image_size=96, tf_padding=False)
    return _Logits(MobileNetV2ForImageClassification(config))


class _Logits(nn.Module):
    """A classifier of transformers that gives its logits alone."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.model(x).logits
        return logits


def _ds_cnn() -> nn.Module:
    def step(*layer: nn.Module) -> list[nn.Module]:
        return [*layer, nn.BatchNorm2d(64), nn.ReLU()]

    blocks = [
        module
        for _ in range(4)
        for module in (*step(nn.Conv2d(64, 64, 3, 1, 1, groups=64)), *step(nn.Conv2d(64, 64, 1)))
    ]
    stem = step(nn.Conv2d(1, 64, (10, 4), 2, (5, 1)))
    return nn.Sequential(*stem, *blocks, nn.AvgPool2d((25, 5)), nn.Flatten(), nn.Linear(64, 12))


MODELS: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    "jet tagger": (_jet_tagger, (1, 16)),
    "ResNet-8": (_resnet8, (1, 3, 32, 32)),
    "DS-CNN": (_ds_cnn, (1, 1, 49, 10)),
    "MobileNetV2 x0.35": (_mobilenet_v2, (1, 3, 96, 96)),
}


def _programs(name: str) -> tuple[Program, Program]:
    """The model quantized, and with its scales snapped."""
    make, shape = MODELS[name]
    torch.manual_seed(0)
    model = make().eval()
    batches = [torch.randn(shape) for _ in range(4)]
    quantize = Quantize(calibration=batches, coverage=Coverage.EVERYTHING)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        plain = PassManager([quantize], progress=False).run(trace(model, (batches[0],))).program
    return plain, PassManager([SnapScales()], progress=False).run(plain.copy()).program


def _lowered(program: Program) -> Program:
    return PassManager(Hls().passes(), progress=False).run(program.copy()).program


def _graph(program: Program) -> Graph:
    return Builder(_lowered(program), RULES).build().graph()


# -- rows ------------------------------------------------------------------------------------------------------------


def _simulated(name: str, program: Program) -> list[Row]:
    lowered = _lowered(program)
    x = torch.randn(FRAMES, *MODELS[name][1][1:], generator=torch.Generator().manual_seed(1)) * 2
    expected = torch.cat([lowered.run([frame[None]])[0] for frame in x])
    with tempfile.TemporaryDirectory() as folder:
        start = time.perf_counter()
        artifact = Hls(PART).emit(lowered, Path(folder))
        emitted = time.perf_counter()
        artifact.build()
        compiled = time.perf_counter()
        found = artifact.run(x)
        done = time.perf_counter()
        peer, note = _hls4ml(Path(folder), x, expected)
    seconds = f"emit {emitted - start:.1f}, compile {compiled - emitted:.1f}, simulate {done - compiled:.2f}"
    different = int((found != expected).sum())
    return [
        Row(f"{name}: emit, compile, simulate {FRAMES} frames", done - start, "s", note=seconds),
        Row(f"{name}: values that differ", different, f"of {expected.numel()}", peer, PEER, goal="0", note=note),
    ]


def _hls4ml(folder: Path, x: Tensor, expected: Tensor) -> tuple[float | None, str]:
    """Values of hls4ml that differ on the same file, and what it said where it failed."""
    try:
        import hls4ml
    except ImportError:
        return None, ""
    from qonnx.core.modelwrapper import ModelWrapper
    from qonnx.util.cleanup import cleanup_model

    try:
        model = cleanup_model(ModelWrapper(str(folder / "model.qonnx.onnx")))
        config = hls4ml.utils.config_from_onnx_model(model, granularity="name", default_precision="fixed<32,16>")
        converted = hls4ml.converters.convert_from_onnx_model(
            model, output_dir=str(folder / "peer"), backend="Vitis", hls_config=config
        )
        converted.compile()
        layout = x.permute(0, 2, 3, 1) if x.dim() == 4 else x
        found = converted.predict(np.ascontiguousarray(layout.numpy())).reshape(expected.shape)
    except Exception as error:  # noqa: BLE001  # whatever it says is the result
        return None, f"{PEER} failed: {type(error).__name__}: {str(error).splitlines()[0][:90] if str(error) else ''}"
    agree = (found.argmax(1) == expected.numpy().argmax(1)).mean()
    return float((found != expected.numpy()).sum()), f"argmax agrees on {agree:.0%}"


def _requantizers(name: str, program: Program) -> list[Row]:
    graph = _graph(program)
    units = [layer for layer in graph.layers if isinstance(layer, MatrixVector | Depthwise)]
    found = [unit.requantizer for unit in units if unit.requantizer is not None]
    bits = np.concatenate([bit_length(one.multiplier) for one in found])
    adders = np.concatenate([one.adders for one in found])
    fixed = np.concatenate([_fixed_adders(one.multiplier, one.shift) for one in found])
    floats = int(sum((one.form == 1).sum() for one in found))
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


def _sparsity() -> list[Row]:
    """The jet tagger four times as wide with blocks of 1 x 4 zero, at one folding."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(16, 256), nn.ReLU(), nn.Linear(256, 128), nn.ReLU(), nn.Linear(128, 5))
    batches = [torch.randn(1, 16) for _ in range(4)]
    quantize = Quantize(calibration=batches, coverage=Coverage.EVERYTHING)
    graph = _graph(PassManager([quantize], progress=False).run(trace(model, (batches[0],))).program)
    folds = {layer.name: Fold(1, 4) for layer in graph.layers if not follows(layer) and 4 in choices(layer).simd}
    rows, least = [], 0
    for zeros in (0.0, 0.5, 0.8, 0.9):
        made = design(_with_zeros(graph, zeros), folds)
        found = size_fifos(made)
        taken = total(estimate(made, found.depths))
        least = least or found.timing.interval
        resources = f"estimated lut {taken.lut}, dsp {taken.dsp}, bram {taken.bram}"
        what = f"wide jet tagger, {zeros:.0%} of blocks zero"
        rows.append(
            Row(what, found.timing.interval, "cycles", least, "dense", least / found.timing.interval, note=resources)
        )
    return rows


def _with_zeros(graph: Graph, share: float) -> Graph:
    random = np.random.default_rng(0)
    layers = []
    for layer in graph.layers:
        if isinstance(layer, MatrixVector):
            rows, columns = layer.weight.shape
            kept = random.permuted(np.tile(np.arange(columns // 4) >= round(share * columns / 4), (rows, 1)), axis=1)
            weight = layer.weight * np.repeat(kept, 4, axis=1)
            layers.append(replace(layer, weight=weight))
        else:
            raise TersorError("a model of linear layers alone has none of another kind", found=layer.kind)
    return Graph(tuple(layers), graph.inputs, graph.outputs)
