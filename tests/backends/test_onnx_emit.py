"""The emitted model as a whole: sizes that change, names, what is stored, what is refused."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path
from typing import Any, cast

import onnx
import onnxruntime
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tersor.backends.onnx.builder import Builder, OnnxOptions, Value
from tersor.backends.onnx.emit import emit_model, unsupported
from tersor.backends.onnx.registry import RULES, rule
from tersor.frontends.torch_export import trace
from tersor.ir.errors import LoweringError
from tersor.ir.program import Program
from tersor.passes.canonical.canonicalize import Canonicalize

aten = torch.ops.aten
attend = F.scaled_dot_product_attention
RunOnnx = Callable[[onnx.ModelProto, Sequence[Tensor]], list[Tensor]]


class Call(nn.Module):
    def __init__(self, function: Callable[..., Any]) -> None:
        super().__init__()
        self.function = function

    def forward(self, *inputs: Tensor) -> Any:
        return self.function(*inputs)


def assert_same(expected: Sequence[Tensor], found: Sequence[Tensor]) -> None:
    """Dtypes, shapes, and values up to float rounding."""
    assert len(expected) == len(found)
    for ours, theirs in zip(expected, found, strict=True):
        torch.testing.assert_close(theirs, ours.detach(), rtol=2e-5, atol=2e-5)


def images() -> Tensor:
    return torch.randn(2, 4, 6, 6)


# -- sizes that change from call to call -----------------------------------------------------------------------------


class Flexible(nn.Module):
    def forward(self, t: Tensor) -> dict[str, Tensor]:
        batch, length, width = t.shape
        return {
            "heads": t.reshape(batch, length, 2, width // 2).transpose(1, 2),
            "merged": t.reshape(batch * length, width),
            "crossed": t.reshape(length, batch, width),
            "flat": t.flatten(1),
            "tail": t[:, length - 1 :, : length // 2],
            "half": t[:, : max(length - 3, 1)],
            "rest": t[:, : length % 3 + 1],
            "count": torch.arange(length) * 2,
            "wide": torch.full((batch, length + 2), 1.5),
            "sized": t * length,
            "expanded": t[:, :1].expand(batch, length, width),
            "padded": F.pad(t, (0, 0, length, 1)),
            "var": t.var(1),
            "linear": F.linear(t, torch.ones(3, width), torch.ones(3)),
            "causal": attend(t, t, t, is_causal=True),
            "split": torch.split(t, 2, 2)[1],
            "stacked": torch.cat([t, t], 1).unflatten(1, (2, length)),
            "grouped": attend(t[:, None].expand(batch, 4, length, width), t[:, None], t[:, None], enable_gqa=True),
        }


@pytest.mark.parametrize("shape", [(2, 5, 6), (1, 4, 6), (3, 9, 6)])
def test_sizes_that_change_from_call_to_call(shape: tuple[int, ...], run_onnx: RunOnnx) -> None:
    program, model = flexible()
    inputs = [torch.randn(*shape)]
    assert_same(program.run(inputs), run_onnx(model, inputs))


@cache
def flexible() -> tuple[Program, onnx.ModelProto]:
    program = trace(Flexible(), (torch.randn(2, 5, 6),), dynamic={"t": {0: "batch", 1: "length"}})
    return program, emit_model(program)


def test_dynamic_dimensions_keep_their_names() -> None:
    _, model = flexible()
    (given,) = model.graph.input
    assert [d.dim_param or d.dim_value for d in given.type.tensor_type.shape.dim] == ["batch", "length", 6]
    wide = next(output for output in model.graph.output if output.name == "wide")
    assert [d.dim_param for d in wide.type.tensor_type.shape.dim] == ["batch", "length + 2"]


# -- names and refusals ----------------------------------------------------------------------------------------------


class Named(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 4, 3)
        self.output = nn.Linear(4, 2)  # a parameter whose name begins as the output's

    def forward(self, t: Tensor) -> dict[str, Any]:
        features = torch.relu(self.stem(t))
        pooled = features.mean((2, 3))
        return {"t": t, "pooled": pooled, "again": pooled, "scores": [self.output(pooled)], "weight": self.stem.bias}


def test_names_are_those_of_the_program(run_onnx: RunOnnx) -> None:
    program = trace(Named(), (torch.randn(2, 3, 8, 8),))
    model = emit_model(program)
    nodes = {node.name: node for node in model.graph.node}
    assert nodes["conv2d"].input[1:] == ["stem.weight", "stem.bias"]
    assert nodes["relu"].output == ["relu"]
    assert [given.name for given in model.graph.input] == ["t"]
    assert [given.name for given in model.graph.output] == ["t_1", "pooled", "again", "scores.0", "weight"]
    inputs = [torch.randn(2, 3, 8, 8)]
    assert_same(program.run(inputs), run_onnx(model, inputs))


def test_what_nothing_reads_is_not_stored() -> None:
    program = trace(Named(), (torch.randn(2, 3, 8, 8),))
    stored = {tensor.name for tensor in emit_model(program).graph.initializer}
    assert stored == {"stem.weight", "stem.bias", "output.weight", "output.bias", "constant_0"}


def test_a_tied_tensor_is_stored_once() -> None:
    class Tied(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.words, self.head = nn.Embedding(7, 4), nn.Linear(4, 7, bias=False)
            self.head.weight = self.words.weight

        def forward(self, t: Tensor) -> Tensor:
            return cast(Tensor, self.head(self.words(t)))

    model = emit_model(trace(Tied(), (torch.randint(0, 7, (2, 3)),)))
    assert [tuple(tensor.dims) for tensor in model.graph.initializer] == [(7, 4)]


@pytest.mark.parametrize("size", [1, 3])
def test_bags_of_one_size_in_a_batch_of_any(size: int, run_onnx: RunOnnx) -> None:
    model = nn.EmbeddingBag(7, 4, mode="mean")
    program = trace(model, (torch.randint(0, 7, (2, size)),), dynamic={"input": {0: "batch"}})
    inputs = [torch.randint(0, 7, (5, size))]
    for given in (program, Canonicalize()(program)):
        assert_same(program.run(inputs), run_onnx(emit_model(given), inputs))


REFUSED: dict[str, tuple[Callable[..., Any], tuple[Tensor, ...], str]] = {
    "no rule": (torch.fft.rfft, (images(),), "no rule"),
    "boolean index": (lambda t, m: t[m], (images(), images() > 0), "depends on data"),
    "windows of different size": (lambda t: F.adaptive_avg_pool3d(t[None], 3), (images(),), "windows differ"),
    "bags of any size": (
        lambda i, w, start: F.embedding_bag(i, w, start),
        (torch.arange(5), torch.randn(5, 4), torch.tensor([0, 2])),
        "bags of different sizes",
    ),
    "unbatched pool": (lambda t: F.max_pool2d(t, 2), (images()[0],), "batch dimension"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_not_taken_is_said_with_a_reason_and_a_hint(name: str) -> None:
    function, inputs, reason = REFUSED[name]
    program = trace(Call(function), inputs)
    (refused,) = unsupported(program)
    assert reason in refused.reason
    assert refused.hint
    with pytest.raises(LoweringError, match=reason):
        emit_model(program)


def test_training_mode_is_refused() -> None:
    program = trace(nn.Sequential(nn.BatchNorm2d(4), nn.Dropout()), (images(),)).train()
    assert [refused.operator for refused in unsupported(program)] == ["aten.batch_norm", "aten.dropout"]


def test_a_rule_can_be_added_from_outside_but_not_twice() -> None:
    program = trace(Call(torch.special.bessel_j0), (images(),))
    (refused,) = unsupported(program)
    assert "Decompose('aten.special_bessel_j0')" in str(refused.hint)

    def bessel(b: Builder, t: Value) -> str:
        return b.op("Mul", t, b.number(0, t.dtype))

    target = aten.special_bessel_j0.default
    try:
        rule(target)(bessel)
        assert unsupported(program) == []
        with pytest.raises(LoweringError, match="has an ONNX rule already"):
            rule(target)(bessel)
    finally:
        RULES.pop(target)


@pytest.mark.parametrize("opset", [21, 23])
def test_every_opset_that_is_offered_runs(opset: int, run_onnx: RunOnnx) -> None:
    program = trace(Named(), (torch.randn(2, 3, 8, 8),))
    model = emit_model(program, OnnxOptions(opset=opset))
    assert model.opset_import[0].version == opset
    inputs = [torch.randn(2, 3, 8, 8)]
    assert_same(program.run(inputs), run_onnx(model, inputs))


class Normalized(nn.Module):
    """A sum that a norm reads, one that nothing does, and one of another shape."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(8)

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        summed = x + y
        z: Tensor = self.norm(summed) + summed
        return z


def test_a_sum_before_a_norm_is_not_fused_into_the_slower_kernel(tmp_path: Path) -> None:
    """SkipLayerNormalization takes three times as long as what it stands for."""
    x, y = torch.randn(2, 4, 8), torch.randn(2, 4, 8)
    program = trace(Normalized(), (x, y))
    (expected,) = program.run((x, y))
    for options, operators in ((OnnxOptions(contrib=True), {"Sum", "Add"}), (OnnxOptions(), {"Add"})):
        proto = emit_model(program, options)
        assert {node.op_type for node in proto.graph.node} & {"Sum", "Add"} == operators
    settings = onnxruntime.SessionOptions()
    settings.optimized_model_filepath = str(tmp_path / "optimized.onnx")
    session = onnxruntime.InferenceSession(
        emit_model(program, OnnxOptions(contrib=True)).SerializeToString(), settings, providers=["CPUExecutionProvider"]
    )
    left = {node.op_type for node in onnx.load(tmp_path / "optimized.onnx").graph.node}
    assert "LayerNormalization" in left
    assert "SkipLayerNormalization" not in left
    (found,) = session.run(None, {"x": x.numpy(), "y": y.numpy()})
    assert torch.allclose(torch.from_numpy(found), expected, atol=1e-5)


@pytest.mark.parametrize("attention", [False, True], ids=["softmax", "attention"])
def test_hidden_rows_are_zeros_and_a_nan_shows(attention: bool, tmp_path: Path) -> None:
    class Masked(nn.Module):
        def forward(self, x: Tensor, mask: Tensor) -> Tensor:
            if attention:
                return nn.functional.scaled_dot_product_attention(x, x, x, mask)
            return torch.ops.aten._safe_softmax(x + mask, -1)  # type: ignore[no-any-return]  # an untyped operator

    torch.manual_seed(0)
    x, mask = torch.randn(1, 2, 5, 5), torch.zeros(5, 5)
    mask[1], mask[2, :3] = -torch.inf, -torch.inf
    path = tmp_path / "model.onnx"
    path.write_bytes(emit_model(trace(Masked(), (x, mask))).SerializeToString())
    session = onnxruntime.InferenceSession(str(path))

    def run(mask: Tensor) -> Tensor:
        names = [value.name for value in session.get_inputs()]
        return torch.from_numpy(session.run(None, dict(zip(names, (x.numpy(), mask.numpy()), strict=True)))[0])

    assert not run(mask)[..., 1, :].any()
    spoiled = mask.clone()
    spoiled[3, 0] = torch.nan
    for given in (mask, spoiled):
        torch.testing.assert_close(run(given), Masked()(x, given), equal_nan=True)
    assert run(spoiled)[..., 3, :].isnan().all()
