"""ResNet-50 in INT8 on ONNX Runtime: latency, accuracy and time to file, beside onnxruntime's own static quantizer.

The model is `transformers`' from its default config, with random weights (no download), at 224x224. Eight calibration
samples, eight others for the score. Inputs are smooth random images: on plain noise a random network gives nearly the
same logits for every sample, and the score would measure only their mean. Time to file is taken after a small model has
gone through both, so that neither pays for what is imported once.
"""

from __future__ import annotations

import tempfile
import time
import warnings
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import onnxruntime
import torch
from torch import Tensor, nn

import tersor as ts
from tersor.passes.compare import difference
from tersor.timing import measure

from .results import Row, machine

SAMPLES = 8


def images(count: int, seed: int, size: int) -> list[Tensor]:
    """Smooth random images float32[1, 3, size, size] of varying contrast and colour."""
    generator = torch.Generator().manual_seed(seed)
    made = []
    for _ in range(count):
        coarse = torch.randn(1, 3, 14, 14, generator=generator)
        smooth = nn.functional.interpolate(coarse, size=(size, size), mode="bilinear")
        contrast = 0.3 + 1.4 * torch.rand(1, generator=generator)
        made.append(smooth * contrast + 0.5 * torch.randn(1, 3, 1, 1, generator=generator))
    return made


def model(quick: bool, seed: int = 0) -> nn.Module:
    """ResNet-50 as the library builds it; a four-layer one for a quick run."""
    from transformers import ResNetConfig, ResNetForImageClassification

    torch.manual_seed(seed)
    config = ResNetConfig(embedding_size=16, hidden_sizes=[32, 64], depths=[1, 1]) if quick else ResNetConfig()
    config.num_labels = 1000
    net: nn.Module = ResNetForImageClassification(config)
    return net.eval()


def run(quick: bool, seed: int = 0) -> list[Row]:
    """Rows for latency against float and peer, SQNR on held-out samples, and time from model to file.

    seed: of the weights.
    """
    size = 64 if quick else 224
    calibration, held_out = images(SAMPLES, 1, size), images(SAMPLES, 2, size)
    net = model(quick, seed)
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder)
        for make in (_ours, _peer):  # what both import and set up once is neither's
            make(model(quick=True), images(1, 0, 64), out / "small")
        ours, our_seconds = _timed(partial(_ours, net, calibration, out))
        peer, peer_seconds = _timed(partial(_peer, net, calibration, out))
        floats = str(out / "float" / "model.onnx")
        ts.lower(ts.trace(net, (calibration[0],)), out=out / "float")
        sessions = {name: _session(path) for name, path in (("float", floats), ("ours", ours), ("peer", peer))}
        scores = {name: _sqnr(net, session, held_out) for name, session in sessions.items()}
        feeds = {name: {s.get_inputs()[0].name: held_out[0].numpy()} for name, s in sessions.items()}
        calls = {name: partial(s.run, None, feeds[name]) for name, s in sessions.items()}
        latency = {name: found.median for name, found in measure(calls, seconds=1 if quick else 8).items()}
        sizes = {name: Path(path).stat().st_size for name, path in (("float", floats), ("ours", ours), ("peer", peer))}
    vnni = "" if machine()["vnni"] else "no VNNI on this CPU: integer convolution is bound by AVX2"
    name = "quantize_static"
    return [
        Row("speed over float32 in ONNX Runtime", latency["float"] / latency["ours"], "x",
            latency["float"] / latency["peer"], name, latency["peer"] / latency["ours"],
            ">= 3.4 x with VNNI, >= 1.03 of the peer's", vnni),
        Row("latency", latency["ours"] * 1e3, "ms", latency["peer"] * 1e3, name, latency["peer"] / latency["ours"],
            note=f"float32: {latency['float'] * 1e3:.1f} ms"),
        Row("SQNR of the logits", scores["ours"][0], "dB", scores["peer"][0], name,
            goal=">= peer + 3 dB", note=f"{scores['ours'][0] - scores['peer'][0]:+.1f} dB"),
        Row("SQNR less each logit's mean", scores["ours"][1], "dB", scores["peer"][1], name,
            goal=">= peer + 3 dB", note=f"{scores['ours'][1] - scores['peer'][1]:+.1f} dB"),
        Row("model to file", our_seconds, "s", peer_seconds, f"torch.onnx and {name}", peer_seconds / our_seconds,
            "at most half of the peer's"),
        Row("file", sizes["ours"] / 1e6, "MB", sizes["peer"] / 1e6, name, sizes["float"] / sizes["ours"],
            "a quarter of float32", "ratio is float32's size over ours"),
    ]  # fmt: skip


def _timed(make: Callable[[], str]) -> tuple[str, float]:
    started = time.perf_counter()
    return make(), time.perf_counter() - started


def _ours(net: nn.Module, calibration: list[Tensor], out: Path) -> str:
    artifact = ts.compress(net, (calibration[0],), calibration=calibration, out=out / "ours")
    return str(artifact.path / "model.onnx")


def _peer(net: nn.Module, calibration: list[Tensor], out: Path) -> str:
    from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_static

    class Reader(CalibrationDataReader):  # type: ignore[misc]  # onnxruntime is not typed
        """The samples one by one, as the quantizer asks for them."""

        def __init__(self) -> None:
            self.samples: Iterator[Any] = iter({"pixel_values": image.numpy()} for image in calibration)

        def get_next(self) -> Any:
            return next(self.samples, None)

    out.mkdir(exist_ok=True)
    exported, quantized = out / "peer_float.onnx", out / "peer.onnx"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.onnx.export(net, (calibration[0],), exported, input_names=["pixel_values"], dynamo=True, verbose=False)
        # uint8 activations: with its default, int8, ONNX Runtime fuses fewer convolutions and the peer is slower.
        kinds = {"activation_type": QuantType.QUInt8, "weight_type": QuantType.QInt8}
        quantize_static(exported, quantized, Reader(), quant_format=QuantFormat.QDQ, per_channel=True, **kinds)
    return str(quantized)


def _session(path: str) -> onnxruntime.InferenceSession:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    options.log_severity_level = 3
    return onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])


def _sqnr(net: nn.Module, session: onnxruntime.InferenceSession, samples: list[Tensor]) -> tuple[float, float]:
    """Over all samples' logits, and after taking each logit's mean over the samples out of both sides."""
    name = session.get_inputs()[0].name
    with torch.no_grad():
        exact = torch.cat([net(image).logits for image in samples])
    found = torch.cat([torch.from_numpy(session.run(None, {name: image.numpy()})[0]) for image in samples])
    centred = difference([exact - exact.mean(0)], [found - found.mean(0)])
    return difference([exact], [found]).sqnr, centred.sqnr
