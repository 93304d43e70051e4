"""Importing ONNX files: seconds, and memory as a multiple of the file, beside ONNX Runtime opening the same file.

ResNet-50 is `transformers`' from its default config, with random weights, exported by torch.onnx with its weights in
the file or beside it. The long graph is residual blocks of dense layers with the reshapes that exporters write, and a
dynamic batch. Seconds are the least of several runs. Memory is what a fresh process takes at most beyond what it took
before, measured once it had imported a small file.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import torch
from onnx import TensorProto, helper, numpy_helper

from tersor.frontends.onnx.load import load_onnx

from .resnet50_int8 import model
from .results import Row

RUNS = 5
NODES = 10_000
PER_BLOCK = 8
PEER = "InferenceSession, unoptimized"


def run(quick: bool) -> list[Row]:
    """Rows for ResNet-50 with its weights in the file and beside it, and for a graph of 10,000 nodes."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        small = _chain(folder / "small.onnx", PER_BLOCK)
        inside, beside = _resnet(folder, quick)
        long, short = (
            _chain(folder / f"{count}.onnx", count) for count in (NODES // (10 if quick else 1), NODES // 10)
        )
        rows = []
        for what, path, size in (
            ("ResNet-50", inside, inside.stat().st_size),
            ("ResNet-50, weights beside", beside, _beside(beside).stat().st_size),
        ):
            rows += [_seconds(what, path, "<= 2 s"), _memory(what, path, small, size)]
        return [*rows, _seconds(f"{NODES:,} nodes", long, "<= 10 s"), _linear(long, short)]


def _resnet(folder: Path, quick: bool) -> tuple[Path, Path]:
    """The model with its weights in the file, and with its weights beside it."""
    inside, beside = folder / "resnet.onnx", folder / "beside.onnx"
    size = 64 if quick else 224
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        image = torch.zeros(1, 3, size, size)
        torch.onnx.export(model(quick), (image,), inside, dynamo=True, external_data=False, verbose=False)
    proto = onnx.load(inside)
    onnx.save(proto, beside, save_as_external_data=True, location=_beside(beside).name)
    return inside, beside


def _beside(path: Path) -> Path:
    return path.with_suffix(".bin")


def _chain(path: Path, nodes: int) -> Path:
    """Residual blocks, each a dense layer, relu, and a reshape by sizes computed from the shape."""
    made, value = [], "x"
    for block in range(nodes // PER_BLOCK):
        names = {name: f"b{block}_{name}" for name in ("m", "a", "r", "s", "n", "to", "v", "y")}
        made += [
            helper.make_node("MatMul", [value, "weight"], [names["m"]]),
            helper.make_node("Add", [names["m"], "bias"], [names["a"]]),
            helper.make_node("Relu", [names["a"]], [names["r"]]),
            helper.make_node("Shape", [names["r"]], [names["s"]]),
            helper.make_node("Slice", [names["s"], "zero", "one"], [names["n"]]),
            helper.make_node("Concat", [names["n"], "rest"], [names["to"]], axis=0),
            helper.make_node("Reshape", [names["r"], names["to"]], [names["v"]]),
            helper.make_node("Add", [names["v"], value], [names["y"]]),
        ]
        value = names["y"]
    stored = {"weight": np.eye(16, dtype=np.float32), "bias": np.zeros(16, np.float32)}
    stored |= {"zero": np.array([0]), "one": np.array([1]), "rest": np.array([-1, 16])}
    graph = helper.make_graph(
        made,
        "chain",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["batch", 4, 16])],
        [helper.make_tensor_value_info(value, TensorProto.FLOAT, ["batch", 4, 16])],
        [numpy_helper.from_array(array, name) for name, array in stored.items()],
    )
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10), path)
    return path


def _seconds(what: str, path: Path, goal: str) -> Row:
    ours, peer = _least(lambda: load_onnx(path)), _least(lambda: _session(path))
    return Row(f"{what}: import", ours, "s", peer, PEER, peer / ours, goal)


def _least(action: Callable[[], object]) -> float:
    """The least seconds of several runs: others on the machine only make it slower."""
    seconds = []
    for _ in range(RUNS):
        started = time.perf_counter()
        action()
        seconds.append(time.perf_counter() - started)
    return min(seconds)


def _session(path: Path) -> onnxruntime.InferenceSession:
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.intra_op_num_threads = 1
    return onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])


def _memory(what: str, path: Path, small: Path, size: int) -> Row:
    ours, peer = (_growth(who, path, small) / size for who in ("ours", "peer"))
    note = f"{size / 1e6:.1f} MB of weights"
    return Row(f"{what}: memory", ours, "x the file", peer, PEER, peer / max(ours, 0.01), "<= 3 x", note)


def _growth(who: str, path: Path, small: Path) -> int:
    """Bytes that a fresh process takes at most to open the file, once it has opened a small one."""
    command = [sys.executable, "-m", f"{__package__}.onnx_import", who, str(small), str(path)]
    root = Path(__file__).parents[1]
    return int(subprocess.run(command, capture_output=True, text=True, check=True, cwd=root).stdout)


def _measure(who: str, small: str, path: str) -> None:
    """What the fresh process does."""
    opener: Callable[[Path], object] = {"ours": load_onnx, "peer": _session}[who]
    kept = [opener(Path(small))]
    Path("/proc/self/clear_refs").write_text("5")  # the greatest so far becomes what is taken now
    before = _taken("VmRSS")
    kept.append(opener(Path(path)))
    print(_taken("VmHWM") - before)


def _taken(field: str) -> int:
    """Bytes of memory, now or at most."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return 1024 * next(int(line.split()[1]) for line in lines if line.startswith(field))


def _linear(long: Path, short: Path) -> Row:
    """Time a node in the long graph over that in one a tenth as long."""
    rates = [_least(partial(load_onnx, path)) / len(onnx.load(path).graph.node) for path in (long, short)]
    return Row(f"{NODES:,} nodes: time a node", rates[0] / rates[1], "x", goal="1 is linear",
               note=f"over that at {NODES // 10:,}; {rates[0] * 1e3:.2f} ms a node")  # fmt: skip


if __name__ == "__main__":
    _measure(*sys.argv[1:])
