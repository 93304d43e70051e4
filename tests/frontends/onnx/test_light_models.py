"""The models that ship inside the onnx package, against the outputs stored beside them."""

from __future__ import annotations

from pathlib import Path

import onnx
import pytest
import torch
from onnx.backend.test.runner import Runner

from tersor.frontends.onnx.load import load_onnx

FOLDER = Path(onnx.__file__).parent / "backend" / "test" / "data" / "light"
MODELS = sorted(path.stem for path in FOLDER.glob("*.onnx"))


def test_all_nine_are_there() -> None:
    assert len(MODELS) == 9


@pytest.mark.parametrize("name", MODELS)
def test_gives_the_stored_output(name: str) -> None:
    path = FOLDER / f"{name}.onnx"
    graph = onnx.load(path).graph
    weights = {tensor.name for tensor in graph.initializer}
    given = [torch.from_numpy(Runner.generate_dummy_data(v)) for v in graph.input if v.name not in weights]
    program = load_onnx(path)
    (found,) = program.run(program.signature.flatten(given, {}))
    stored = onnx.load_tensor(FOLDER / f"{name}_output_0.pb")
    expected = torch.from_numpy(onnx.numpy_helper.to_array(stored).copy())
    torch.testing.assert_close(found.detach(), expected, rtol=1e-3, atol=1e-7)
