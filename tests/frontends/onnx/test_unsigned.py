"""uint64, which torch stores and does not compute with: beyond the half of its range it is negative in int64."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from numpy.typing import NDArray
from onnx import TensorProto, helper

from tersor.frontends.onnx.load import load_onnx

HALF = 1 << 63
VALUES = np.array([0, 1, 7, HALF - 1, HALF, HALF + 1, 2**64 - 1, 2**62 + 5, 12345678901234567890], np.uint64)
LEFT, RIGHT = (array.reshape(-1) for array in np.meshgrid(VALUES, VALUES[1:]))
ORACLES = {
    "Max": np.maximum,
    "Min": np.minimum,
    "Mod": np.remainder,
    "Less": np.less,
    "GreaterOrEqual": np.greater_equal,
    "Equal": np.equal,
}


def run(folder: Path, node: onnx.NodeProto, inputs: dict[str, NDArray[np.uint64]]) -> torch.Tensor:
    infos = [helper.make_tensor_value_info(name, TensorProto.UINT64, list(a.shape)) for name, a in inputs.items()]
    graph = helper.make_graph([node], "one", infos, [helper.make_empty_tensor_value_info("y")])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)])
    onnx.save(model, folder / "one.onnx")
    program = load_onnx(folder / "one.onnx").verify()
    (found,) = program.run([torch.from_numpy(array) for array in inputs.values()])
    return found


@pytest.mark.parametrize("operator", ORACLES)
def test_pairs_are_as_numpy_has_them(operator: str, tmp_path: Path) -> None:
    found = run(tmp_path, helper.make_node(operator, ["a", "b"], ["y"]), {"a": LEFT, "b": RIGHT})
    np.testing.assert_array_equal(found.numpy(), ORACLES[operator](LEFT, RIGHT))


def test_the_largest_come_first(tmp_path: Path) -> None:
    node = helper.make_node("ArgMax", ["a"], ["y"], axis=0, keepdims=0)
    assert int(run(tmp_path, node, {"a": VALUES})) == int(VALUES.argmax())
