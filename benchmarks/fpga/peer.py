"""hls4ml on the QONNX file of an artifact: `python -m benchmarks.fpga.peer FOLDER` prints what came of it, as JSON.

A process of its own, because a conversion may take any time. Images are given channels last, as it wants them. Its
outputs are fixed-point numbers, so they are compared as steps of the output's grid.
"""

from __future__ import annotations

import contextlib
import io
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np

NAME = "hls4ml"
_SECONDS = 150
_PRECISION = "fixed<32,16>"


def compare(folder: Path, x: Any, steps: Any, scale: float) -> tuple[float | None, str]:
    """Values that differ from `steps` [frames, outputs], and what it said; None where there are none to compare."""
    np.savez(folder / "peer.npz", x=x, steps=steps, scale=scale)
    words = [sys.executable, "-m", "benchmarks.fpga.peer", str(folder)]
    try:
        result = subprocess.run(words, capture_output=True, text=True, timeout=_SECONDS, check=False)
    except subprocess.TimeoutExpired:
        return None, f"{NAME} gave nothing within {_SECONDS} s"
    lines = result.stdout.splitlines()
    if result.returncode or not lines:
        return None, f"{NAME} ended with status {result.returncode}"
    found = json.loads(lines[-1])
    return found["different"], found["note"]


def _convert(folder: Path, images: bool) -> Any:
    import hls4ml
    from qonnx.core.modelwrapper import ModelWrapper
    from qonnx.transformation.channels_last import ConvertToChannelsLastAndClean
    from qonnx.util.cleanup import cleanup_model

    model = cleanup_model(ModelWrapper(str(folder / "model.qonnx.onnx")))
    if images:
        model = cleanup_model(model.transform(ConvertToChannelsLastAndClean()))
    config = hls4ml.utils.config_from_onnx_model(
        model, granularity="name", backend="Vitis", default_precision=_PRECISION
    )
    converted = hls4ml.converters.convert_from_onnx_model(
        model, output_dir=str(folder / "peer"), backend="Vitis", hls_config=config
    )
    converted.compile()
    return converted


def _measure(folder: Path) -> dict[str, object]:
    try:
        import hls4ml  # noqa: F401
    except ImportError:
        return {"different": None, "note": f"{NAME} is not installed"}
    data = np.load(folder / "peer.npz")
    x, steps = data["x"], data["steps"]
    try:
        with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
            converted = _convert(folder, x.ndim == 4)
            given = np.ascontiguousarray(np.moveaxis(x, 1, -1) if x.ndim == 4 else x)
            outputs = converted.predict(given).reshape(steps.shape)
    except Exception as error:  # noqa: BLE001  # whatever it says is the result
        text = str(error).splitlines()[0][:90] if str(error) else ""
        return {"different": None, "note": f"{NAME} failed: {type(error).__name__}: {text}"}
    found = np.round(outputs / float(data["scale"]))
    agree = (found.argmax(1) == steps.argmax(1)).mean()
    return {"different": int((found != steps).sum()), "note": f"{NAME}'s argmax agrees on {agree:.0%}"}


if __name__ == "__main__":
    print(json.dumps(_measure(Path(sys.argv[1]))))
