"""Attention as one operator, and heads that are neither parted nor joined where nothing asks for it."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import onnx
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tersor.backends.onnx.builder import OnnxOptions
from tersor.backends.onnx.emit import emit_model
from tersor.backends.onnxruntime.session import newest_opset
from tersor.frontends.onnx.load import load_onnx
from tersor.frontends.torch_export import trace

RunOnnx = Callable[[onnx.ModelProto, Sequence[Tensor]], list[Tensor]]
WHOLE = OnnxOptions(opset=23, contrib=True, whole_attention=True)
LENGTH, KEYS = 5, 7

pytestmark = pytest.mark.skipif(newest_opset((21, 23)) < 23, reason="this ONNX Runtime has no kernels for opset 23")


class Attend(nn.Module):
    """Attention of `heads`, on heads joined in the last axis as models have them, or on heads apart."""

    def __init__(self, heads: tuple[int, int], *, joined: bool, value_width: int = 8, **options: Any) -> None:
        super().__init__()
        self.heads, self.joined, self.value_width, self.options = heads, joined, value_width, options

    def forward(self, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None = None) -> Tensor:
        if self.joined:
            q = q.reshape(q.shape[0], q.shape[1], self.heads[0], -1).transpose(1, 2)
            k = k.reshape(k.shape[0], k.shape[1], self.heads[1], -1).permute(0, 2, 1, 3)
            v = v.reshape(v.shape[0], v.shape[1], self.heads[1], -1).transpose(1, 2)
        result = F.scaled_dot_product_attention(q, k, v, attn_mask=mask, **self.options)
        if not self.joined:
            return result
        return result.transpose(1, 2).reshape(q.shape[0], -1, self.heads[0] * self.value_width)

    def tensors(self, batch: int = 2, length: int = LENGTH, keys: int = KEYS) -> list[Tensor]:
        """Queries, keys and values."""
        sizes = ((length, self.heads[0], 8), (keys, self.heads[1], 8), (keys, self.heads[1], self.value_width))
        apart = [torch.randn(batch, size, heads, width) for size, heads, width in sizes]
        return [given.flatten(2) if self.joined else given.transpose(1, 2) for given in apart]


class Masked(nn.Module):
    """Attention with a mask that the program holds."""

    def __init__(self, attend: Attend) -> None:
        super().__init__()
        self.attend = attend

    def forward(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        result: Tensor = self.attend(q, k, v, self.attend.mask)
        return result


def visible(*shape: int) -> Tensor:
    """Which keys are seen; of one row none."""
    seen = torch.rand(*shape) > 0.4
    seen.view(-1, shape[-1])[shape[-2] // 2] = False
    return seen


def hides(seen: Tensor, low: float = -math.inf) -> Tensor:
    return torch.randn(seen.shape).masked_fill(~seen, low)


def masks() -> dict[str, Tensor]:
    return {
        "flat": visible(LENGTH, KEYS),
        "padding": visible(2, 1, 1, KEYS),
        "each row": visible(2, 1, LENGTH, KEYS),
        "one batch": hides(visible(1, 1, LENGTH, KEYS)),
        "each head": hides(visible(2, 4, LENGTH, KEYS)),
        "three dimensions": hides(visible(4, LENGTH, KEYS)),
        "by row": visible(LENGTH, 1),
        "least float": hides(visible(2, 1, LENGTH, KEYS), torch.finfo(torch.float32).min),
    }


def assert_computes(module: Attend, inputs: Sequence[Tensor], run_onnx: RunOnnx, dynamic: Any = None) -> set[str]:
    """The model gives what the module gives; its operators."""
    model = emit_model(trace(module, tuple(inputs), dynamic=dynamic), WHOLE)
    (found,) = run_onnx(model, inputs)
    torch.testing.assert_close(found, module(*inputs), rtol=2e-5, atol=2e-5)
    return {node.op_type for node in model.graph.node}


@pytest.mark.parametrize("joined", [True, False])
@pytest.mark.parametrize("name", list(masks()))
def test_masks(name: str, joined: bool, run_onnx: RunOnnx) -> None:
    """A row that minus infinity hides as a whole gives zeros; one that finite numbers hide, the mean of all values."""
    torch.manual_seed(0)
    module = Attend((4, 4), joined=joined)
    written = assert_computes(module, [*module.tensors(), masks()[name]], run_onnx)
    assert "Attention" in written
    assert "Softmax" not in written


@pytest.mark.parametrize("joined", [True, False])
@pytest.mark.parametrize("heads", [(4, 4), (4, 2), (4, 1)])
@pytest.mark.parametrize("causal", [True, False])
def test_heads(heads: tuple[int, int], causal: bool, joined: bool, run_onnx: RunOnnx) -> None:
    """Grouped heads, values of another width, causal with more keys than queries."""
    module = Attend(heads, joined=joined, value_width=6, is_causal=causal, enable_gqa=heads[0] != heads[1], scale=0.3)
    assert "Attention" in assert_computes(module, module.tensors(), run_onnx)


def test_joined_heads_are_not_moved(run_onnx: RunOnnx) -> None:
    """What is left beside attention gives the model's output its name."""
    module = Attend((4, 4), joined=True)
    assert assert_computes(module, module.tensors(), run_onnx) == {"Attention", "Identity"}


def test_other_sizes_than_traced(run_onnx: RunOnnx) -> None:
    module = Attend((4, 4), joined=True)
    sizes = {"q": {0: "batch", 1: "length"}, "k": {0: "batch", 1: "keys"}, "v": {0: "batch", 1: "keys"}}
    program = trace(
        module, (*module.tensors(), visible(2, 1, 1, KEYS)), dynamic={**sizes, "mask": {0: "batch", 3: "keys"}}
    )
    model = emit_model(program, WHOLE)
    for batch, length, keys in ((1, 1, 9), (3, 6, 6)):
        inputs = [*module.tensors(batch, length, keys), visible(batch, 1, 1, keys)]
        torch.testing.assert_close(run_onnx(model, inputs)[0], module(*inputs), rtol=2e-5, atol=2e-5)


@pytest.mark.parametrize("scale", [-0.3, 0.0])
def test_a_scale_that_the_operator_has_no_root_of(scale: float, run_onnx: RunOnnx) -> None:
    module = Attend((4, 4), joined=True, scale=scale)
    assert "Softmax" in assert_computes(module, module.tensors(), run_onnx)


def test_a_batch_that_is_broadcast(run_onnx: RunOnnx) -> None:
    module = Attend((4, 4), joined=False)
    query, (_, key, value) = module.tensors()[0], module.tensors(1)
    assert "Softmax" in assert_computes(module, [query, key, value], run_onnx)


@pytest.mark.parametrize("joined", [True, False])
@pytest.mark.parametrize("constant", [True, False])
@pytest.mark.parametrize("name", list(masks()))
def test_the_file_is_read_again(name: str, joined: bool, constant: bool, tmp_path: Path) -> None:
    """As attention alone, whose mask hides as the program's does, whatever the file does to rows that see nothing."""
    torch.manual_seed(0)
    module, mask = Attend((4, 4), joined=joined), masks()[name]
    inputs = module.tensors()
    module.register_buffer("mask", mask)
    program = trace(Masked(module), tuple(inputs)) if constant else trace(module, (*inputs, mask))
    onnx.save(emit_model(program, WHOLE), tmp_path / "model.onnx")
    found = load_onnx(tmp_path / "model.onnx").verify()
    names = {str(node.target) for node in found.graph.nodes}
    assert "aten.scaled_dot_product_attention.default" in names
    assert not names & {"aten.mul.Tensor", "aten.amax.default", "aten.gt.Scalar"}
    given = inputs if constant else [*inputs, mask]
    torch.testing.assert_close(found.run(given)[0], program.run(given)[0], rtol=1e-6, atol=1e-6)


def test_rows_of_attention_that_others_read_stay_as_they_are(tmp_path: Path) -> None:
    """The result before rows become zero is an output too."""
    module = Attend((4, 4), joined=False)
    inputs = [*module.tensors(), visible(2, 1, LENGTH, KEYS)]
    model = emit_model(trace(module, tuple(inputs)), WHOLE)
    (attended,) = (node.output[0] for node in model.graph.node if node.op_type == "Attention")
    model.graph.output.append(onnx.helper.make_tensor_value_info(attended, onnx.TensorProto.FLOAT, None))
    onnx.save(model, tmp_path / "model.onnx")
    zeroed, whole = load_onnx(tmp_path / "model.onnx").run(inputs)
    torch.testing.assert_close(zeroed, module(*inputs), rtol=1e-6, atol=1e-6)
    assert bool((whole[:, :, LENGTH // 2] != 0).any())


def test_older_opsets_spell_it_out() -> None:
    module = Attend((4, 4), joined=True)
    model = emit_model(trace(module, tuple(module.tensors())), OnnxOptions(opset=21, whole_attention=True))
    assert "Softmax" in {node.op_type for node in model.graph.node}
