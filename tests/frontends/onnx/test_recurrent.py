"""LSTM, GRU and RNN: imported, run, saved, lowered and imported again, against ONNX Runtime and PyTorch."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from onnx import helper, numpy_helper
from torch import Tensor, nn

from tersor.frontends.onnx.load import load_onnx
from tersor.frontends.torch_export import trace
from tersor.ir.errors import LoweringError, TraceError
from tersor.ir.program import Program
from tersor.ir.shapes import shape_of
from tersor.lowering import lower

aten = torch.ops.aten
STEPS, BATCH, WIDTH, HIDDEN = 5, 3, 4, 6
GATES = {"RNN": 1, "GRU": 3, "LSTM": 4}


def network(folder: Path, operator: str, *, states: bool = True, steps: int | str = "steps", **attributes: Any) -> Path:
    """A model of one operator with random weights, whose steps and batch may change."""
    rng = np.random.default_rng(0)
    ways = 2 if attributes.get("direction") == "bidirectional" else 1
    gates = GATES[operator] * HIDDEN
    sizes = {"w": (ways, gates, WIDTH), "r": (ways, gates, HIDDEN), "b": (ways, 2 * gates)}
    inputs = ["x", "w", "r", "b", ""]
    if states:
        names = ["h", "c"] if operator == "LSTM" else ["h"]
        inputs += names
        sizes |= dict.fromkeys(names, (ways, BATCH, HIDDEN))
    outputs = ["y", "y_h", *(["y_c"] if operator == "LSTM" else [])]
    graph = helper.make_graph(
        [helper.make_node(operator, inputs, outputs, hidden_size=HIDDEN, **attributes)],
        "recurrent",
        [helper.make_tensor_value_info("x", onnx.TensorProto.FLOAT, [steps, BATCH if states else "batch", WIDTH])],
        [helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, None) for name in outputs],
        [numpy_helper.from_array(rng.normal(size=s).astype(np.float32), name) for name, s in sizes.items()],
    )
    path = folder / "recurrent.onnx"
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), path)
    return path


def by_onnxruntime(path: Path, x: Tensor) -> list[Tensor]:
    found = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"]).run(None, {"x": x.numpy()})
    return [torch.from_numpy(array) for array in found]


def check(program: Program, expected: list[Tensor], x: Tensor, folder: Path) -> Program:
    """The program, what was saved of it, what it is lowered to, and the program of that file give the same."""
    program.save(folder / "program.tersor")
    artifact = lower(program, "onnxruntime", folder / "lowered")
    again = load_onnx(artifact.path / "model.onnx").verify()
    for found in (
        program.verify().run([x]),
        Program.load(folder / "program.tersor").run([x]),
        artifact.run_flat([x]),
        again.run([x]),
    ):
        for ours, theirs in zip(found, expected, strict=True):
            torch.testing.assert_close(ours.detach(), theirs, rtol=1e-4, atol=1e-5)
    return again


def targets(program: Program) -> set[Any]:
    return {node.target for node in program.graph.nodes}


WHOLE = {"RNN": aten.rnn_tanh.input, "GRU": aten.gru.input, "LSTM": aten.lstm.input}


@pytest.mark.parametrize("operator", GATES)
@pytest.mark.parametrize("direction", ["forward", "reverse", "bidirectional"])
@pytest.mark.parametrize("states", [False, True])
def test_usual_networks_are_pytorchs_operators(operator: str, direction: str, states: bool, tmp_path: Path) -> None:
    extra = {"linear_before_reset": 1} if operator == "GRU" else {}
    path = network(tmp_path, operator, states=states, direction=direction, **extra)
    x = torch.randn(STEPS + 3, BATCH, WIDTH)
    again = check(load_onnx(path), by_onnxruntime(path, x), x, tmp_path)
    (node,) = again.graph.find_nodes(op="call_function", target=WHOLE[operator])
    assert shape_of(again, node.meta["val"][0])[0] == "steps", "the number of steps may change"


UNUSUAL: dict[str, tuple[str, dict[str, Any]]] = {
    "reset_before": ("GRU", {}),
    "clipped": ("LSTM", {"clip": 0.5}),
    "coupled": ("LSTM", {"input_forget": 1}),
    "relu_in_lstm": ("LSTM", {"activations": ["Sigmoid", "Relu", "Tanh"]}),
    "sigmoid_rnn": ("RNN", {"activations": ["Sigmoid"]}),
    "both_ways": ("GRU", {"direction": "bidirectional"}),
}


@pytest.mark.parametrize("name", UNUSUAL)
def test_unusual_networks_are_unrolled(name: str, tmp_path: Path) -> None:
    operator, attributes = UNUSUAL[name]
    path = network(tmp_path, operator, steps=STEPS, **attributes)
    x = torch.randn(STEPS, BATCH, WIDTH)
    program = load_onnx(path)
    assert not targets(program) & set(WHOLE.values())
    ways = 2 if "direction" in attributes else 1
    assert len(program.parameters()) <= 11 * ways, "the same weights at every step"
    check(program, by_onnxruntime(path, x), x, tmp_path)


def test_unusual_networks_of_unknown_length_are_refused_by_name(tmp_path: Path) -> None:
    with pytest.raises(TraceError, match="GRU") as caught:
        load_onnx(network(tmp_path, "GRU"))
    assert "unroll" in str(caught.value)


def test_unknown_activations_are_refused(tmp_path: Path) -> None:
    with pytest.raises(TraceError, match="activations"):
        load_onnx(network(tmp_path, "RNN", activations=["Affine"]))


class Listener(nn.Module):
    """Two layers both ways, batch first, and a classifier: an audio model in small."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        self.recurrent = getattr(nn, kind)(WIDTH, HIDDEN, num_layers=2, bidirectional=True, batch_first=True)
        self.classify = nn.Linear(2 * HIDDEN, 3)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        y, state = self.recurrent(x)
        final: Tensor = state[0] if isinstance(state, tuple) else state
        return self.classify(y.mean(1)), final


@pytest.mark.filterwarnings("ignore:.*were assigned during export")  # torch's RNNs flatten their weights as they run
@pytest.mark.parametrize("kind", ["LSTM", "GRU", "RNN"])
def test_models_of_pytorch_lower_and_come_back(kind: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    model, x = Listener(kind).eval(), torch.randn(2, 7, WIDTH)
    program = trace(model, (x,), dynamic={"x": {0: "batch"}})
    more = torch.randn(3, 7, WIDTH)
    check(program, [tensor.detach() for tensor in model(more)], more, tmp_path)


def test_states_that_are_projected_are_refused_when_lowered(tmp_path: Path) -> None:
    model = nn.LSTM(WIDTH, HIDDEN, proj_size=2).eval()
    with pytest.raises(LoweringError, match="does not take") as caught:
        lower(trace(model, (torch.randn(2, 1, WIDTH),)), "onnxruntime", tmp_path)
    assert "proj_size=0" in str(caught.value)
